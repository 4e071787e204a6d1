"""A client that a generator makes of `denseport serve`'s OpenAPI: it passes mypy, and gets what others get."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hostile import tiny_bundle
from serving import encoded, random_image, running
from wheels import program_on, wheel

pytestmark = pytest.mark.matrix

# The generator, and what it needs that this environment lacks.
GENERATOR = ("openapi-python-client==0.29.1", "typer==0.27.3", "ruamel.yaml==0.19.1", "shellingham==1.5.4")
NAME = "denseport_tiny_client"
IMAGES = [encoded(random_image(32, 64)), encoded(random_image(48, 40))]
PROGRAM = """
import json, sys
from io import BytesIO
from pathlib import Path
from denseport_tiny_client import Client
from denseport_tiny_client.api.model import batch, model, segment
from denseport_tiny_client.models import BatchBody, BatchFormat, Failure, Format, SegmentFilesBody
from denseport_tiny_client.types import File

client = Client(base_url=sys.argv[1])
files = [File(BytesIO(Path(each).read_bytes()), "a.png", "image/png") for each in sys.argv[2:]]
told = model.sync(client=client)
one = segment.sync(client=client, body=SegmentFilesBody(files[0]), format_=Format.COCO)
files[0].payload.seek(0)
several = batch.sync(client=client, body=BatchBody(files), format_=BatchFormat.JSON)
files[0].payload.seek(0)
refused = segment.sync(client=client, body=SegmentFilesBody(files[0]), format_=Format.JSON, opacity=0.6)
assert isinstance(refused, Failure)
print(json.dumps([told.to_dict(), one.to_dict(), [each.to_dict() for each in several], refused.to_dict()]))
"""


def test_a_generated_client_compiles_and_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheels = [wheel(requirement) for requirement in GENERATOR]
    paths = [tmp_path / f"{number}.png" for number in range(len(IMAGES))]
    for path, data in zip(paths, IMAGES, strict=True):
        path.write_bytes(data)
    with running(tiny_bundle(tmp_path / "bundle")) as server:
        document = tmp_path / "openapi.json"
        document.write_text(server.client.get("/openapi.json").text)
        options = ("generate", "--path", document, "--output-path", tmp_path / "client")
        generated = program_on(wheels, "-m", "openapi_python_client", *options)
        assert generated.returncode == 0, generated.stdout + generated.stderr
        checked = program_on(
            [], "-m", "mypy", "--strict", tmp_path / "client" / NAME, MYPY_CACHE_DIR=str(tmp_path / "c")
        )
        assert checked.returncode == 0, checked.stdout
        said = program_on([tmp_path / "client"], "-c", PROGRAM, server.url, *paths)
        assert said.returncode == 0, said.stderr
        model, one, several, refused = json.loads(said.stdout)
        assert model.keys() == server.client.get("/v1/model").json().keys()
        assert one == server.segment(IMAGES[0], format="coco").json()
        assert [each["classes"] for each in several] == [
            server.segment(data, format="json").json()["classes"] for data in IMAGES
        ]
        assert "opacity means nothing" in refused["error"]
    with capsys.disabled():
        print(f"\n{GENERATOR[0]}, Python {sys.version_info[0]}.{sys.version_info[1]}: {checked.stdout.strip()}", end="")
