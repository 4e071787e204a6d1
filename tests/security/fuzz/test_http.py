"""The HTTP API against its own description: schemathesis makes requests of /openapi.json, fitting and unfitting ones.

What is no HTTP at all is sent by tests/runtime/serving/http/test_serve_peer.py, damaged requests by the target
``http``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from fuzz_targets import CORPUS, corpus
from hostile import tiny_bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from serving import Server, form, serving

from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.media.images import read_image
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.serving.http.upload import BATCH, IMAGE_TYPES, SEGMENT

MODES = {True: GenerationMode.POSITIVE, False: GenerationMode.NEGATIVE}
OPERATIONS = ("GET /v1/model", f"POST {SEGMENT}", f"POST {BATCH}", "GET /health", "GET /ready", "GET /metrics")
BOUNDED = settings(deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
IMAGES = [file.read_bytes() for file in corpus(".png", ".jpg", ".bmp", ".webp") if file.name != "float.tiff"]

for kind in IMAGE_TYPES:
    schemathesis.openapi.media_type(kind, st.sampled_from(IMAGES))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("http") / "bundle")


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[Server]:
    with serving(bundle, "--threads", "1") as started:
        yield started


@pytest.fixture(scope="module")
def schema(server: Server) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url("http://{}:{}/openapi.json".format(*server.address))


def fit(case: Case, images: list[bytes]) -> None:
    """What JSON Schema cannot describe: images, and parameters that belong to one value of another."""
    if isinstance(case.body, dict):
        case.body["image"] = images if case.path == BATCH else images[0]
    if case.query and case.query.get("format") != "overlay":
        case.query = {name: each for name, each in case.query.items() if name not in ("opacity", "legend")}


def test_everything_described_is_tried(schema: schemathesis.BaseSchema) -> None:
    described = {f"{each.ok().method.upper()} {each.ok().path}" for each in schema.get_all_operations()}
    assert described == set(OPERATIONS)


@pytest.mark.parametrize(
    ("operation", "fits"),
    [(f"POST {SEGMENT}", False), (f"POST {BATCH}", False), *((each, True) for each in OPERATIONS)],
)  # the others take nothing that could be unfitting
def test_answers_are_as_described(
    schema: schemathesis.BaseSchema, server: Server, bundle: Bundle, operation: str, fits: bool
) -> None:
    """Status, type, headers and JSON. What fits is taken, what does not is refused in the form of all errors."""
    method, path = operation.split()

    @settings(BOUNDED, max_examples={SEGMENT: 60, BATCH: 30}.get(path, 3))
    @given(
        schema[path][method].as_strategy(generation_mode=MODES[fits]),
        st.lists(st.sampled_from(IMAGES), min_size=1, max_size=3),
    )
    def run(case: Case, images: list[bytes]) -> None:
        if fits:
            fit(case, images)
        response = case.call_and_validate(timeout=20)
        assert response.status_code == 200 or set(response.json()) == {"error", "remedy"}

    run()
    with Segmenter(bundle, threads=1) as segment:
        expected = segment(read_image(CORPUS / "colour.bmp")).mask.tobytes()
    answer = server.ask(form((CORPUS / "colour.bmp").read_bytes(), query="?format=raw"))
    assert answer is not None and answer.body == expected
