"""The time that bundles hold can be given, so that a build can be repeated."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from denseport.export.entrance.write import made_with
from denseport.runtime.bundle.comparison import proof_here
from denseport.runtime.errors import InputError
from denseport.runtime.system.clock import timestamp


def test_the_time_is_now_unless_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    assert abs((datetime.now(UTC) - datetime.fromisoformat(timestamp())).total_seconds()) < 60
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert timestamp() == "2023-11-14T22:13:20+00:00"
    assert made_with((), ())["created"] == proof_here("fp32", "audit", "fp32").date == timestamp()


@pytest.mark.parametrize("given", ["", "-1", "1e9", "1700000000.5", "999999999999", "٣"])
def test_no_time(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", given)
    with pytest.raises(InputError, match="SOURCE_DATE_EPOCH is") as caught:
        timestamp()
    assert caught.value.remedy
