"""What an engine was built for against what is here."""

from __future__ import annotations

import dataclasses
import json

import pytest
from build_records import build_record

from denseport.runtime.bundle.engine_record import PORTABLE_RTX, BuildRecord, Profile, find_profile, mismatch, sm_name
from denseport.runtime.errors import BundleError, InputError

LANDSCAPE = Profile((1, 3, 512, 512), (1, 3, 512, 683), (1, 3, 512, 2048))
PORTRAIT = Profile((1, 3, 512, 512), (1, 3, 683, 512), (1, 3, 2048, 512))

RECORD = build_record(profiles=(LANDSCAPE, PORTRAIT))
RTX = dataclasses.replace(
    RECORD, flavour="tensorrt_rtx", version="1.7.1.116", gpu=None, compute_capability=None, targets=PORTABLE_RTX
)


def test_records_survive_json_beside_other_fields() -> None:
    data = json.loads(json.dumps({**RECORD.to_dict(), "audit": {"agreement": 1.0}}))
    assert BuildRecord.from_dict(data, "e.engine") == RECORD


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": None}, "record.version"),
        ({"seconds": "1"}, "record.seconds"),
        ({"profiles": [1]}, "record.profiles"),
    ],
)
def test_a_spoilt_record_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(BundleError, match=words):
        BuildRecord.from_dict({**json.loads(json.dumps(RECORD.to_dict())), **change}, "e.engine")


def test_a_profile_of_the_wrong_order_is_refused() -> None:
    data = json.loads(json.dumps(RECORD.to_dict()))
    data["profiles"][0]["minimum"] = [2, 3, 512, 512]
    with pytest.raises(BundleError, match="from the minimum over the optimum"):
        BuildRecord.from_dict(data, "e.engine")


@pytest.mark.parametrize(
    ("record", "version", "capability"),
    [
        (RECORD, "11.4.0.10", (8, 6)),
        (dataclasses.replace(RECORD, version_compatible=True), "11.5.0.1", (8, 6)),
        (dataclasses.replace(RECORD, version_compatible=True, version="10.9.0.34"), "11.0.0.1", (8, 6)),
        (dataclasses.replace(RECORD, hardware_compatibility="ampere_plus"), "11.4.0.10", (12, 0)),
        (dataclasses.replace(RECORD, hardware_compatibility="same_compute_capability"), "11.4.0.10", (8, 6)),
        (RTX, "1.7.1.116", (8, 9)),
        (RTX, "1.7.1.116", (12, 0)),
    ],
)
def test_an_engine_that_fits(record: BuildRecord, version: str, capability: tuple[int, int]) -> None:
    assert mismatch(record, version, capability) is None


@pytest.mark.parametrize(
    ("record", "version", "capability"),
    [
        (RECORD, "11.2.0.1", (8, 6)),
        (RECORD, "11.4.0.11", (8, 6)),
        (RECORD, "11.4.0.10", (8, 9)),
        (dataclasses.replace(RECORD, version_compatible=True), "11.2.0.1", (8, 6)),
        (dataclasses.replace(RECORD, version_compatible=True), "12.0.0.1", (8, 6)),
        (dataclasses.replace(RECORD, version_compatible=True, version="8.6.1"), "11.0.0.1", (8, 6)),
        (dataclasses.replace(RECORD, hardware_compatibility="ampere_plus"), "11.4.0.10", (7, 5)),
        (RTX, "1.7.1.116", (9, 0)),
        (RTX, "1.7.1.116", (7, 5)),
        (RTX, "1.6.0.1", (8, 6)),
        (dataclasses.replace(RTX, targets=("sm_120",)), "1.7.1.116", (8, 6)),
    ],
)
def test_an_engine_that_does_not_fit(record: BuildRecord, version: str, capability: tuple[int, int]) -> None:
    found = mismatch(record, version, capability)
    assert found is not None
    assert found.startswith(f"built with {record.built_for}") and found.endswith(f"{version} on {sm_name(capability)}")


def test_the_sentence() -> None:
    assert mismatch(RECORD, "11.2.0.1", (9, 0)) == (
        "built with TensorRT 11.4.0.10 for sm_86; here is 11.2.0.1 on sm_90"
    )


def test_the_profile_of_a_size_is_found_or_the_range_is_stated() -> None:
    assert find_profile(RECORD.profiles, (1, 3, 512, 683)) == 0
    assert find_profile(RECORD.profiles, (1, 3, 683, 512)) == 1
    for shape in ((1, 3, 512, 2049), (2, 3, 512, 512), (1, 3, 600, 600), (3, 512, 512)):
        with pytest.raises(InputError) as caught:
            find_profile(RECORD.profiles, shape)
        assert f"an input of {shape} is outside" in str(caught.value)
        assert "(1, 3, 512, 512..2048) or (1, 3, 512..2048, 512)" in str(caught.value)
        assert "--protocol fixed:683x512" in str(caught.value)  # width x height of the usual input, (1, 3, 512, 683)
