"""The description of the API: its page, its examples, and the calls that the documents show."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import jsonschema_rs
import pytest
from documents import blocks
from hostile import tiny_bundle
from serving import Running, encoded, random_image, running
from support import REPO

from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.serving.http.upload import BATCH, PARAMETERS, SEGMENT

IMAGE = encoded(random_image(32, 64))
STATED = "http://127.0.0.1:8000"  # the address in texts: the command's default
Json = dict[str, Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tiny_bundle(tmp_path_factory.mktemp("reference") / "bundle")) as started:
        yield started


@pytest.fixture(scope="module")
def document(server: Running) -> Json:
    return dict(server.client.get("/openapi.json").json())


class Read(HTMLParser):
    """What a page says, and what it would load or lead to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "srcset", "action", "data")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        assert not [name for name, _ in attrs if name.startswith("on") or name == "style"]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def page(server: Running) -> Read:
    return Read(server.client.get("/docs").text)


def test_the_page_loads_nothing(server: Running, page: Read) -> None:
    response = server.client.get("/docs")
    assert response.status_code == 200 and response.headers["content-type"] == "text/html; charset=utf-8"
    assert not page.tags & {"script", "iframe", "object", "embed", "img", "form", "base"}
    assert all(link.startswith(("#", "data:,")) or link in ("/", "/openapi.json") for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert set(re.findall(r"[a-z]+://[^/\s'\"<]*", response.text)) == {STATED}, "in the calls to copy, nowhere else"
    assert "url(" not in response.text and "@import" not in response.text
    policy = dict(each.split(" ", 1) for each in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["form-action"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert set(policy) == {"default-src", "style-src", "img-src", "base-uri", "form-action", "frame-ancestors"}
    assert re.fullmatch(r"'sha256-[\w+/]{43}='", policy["style-src"]) and policy["img-src"] == "data:"


def test_the_page_tells_all_that_is_described(page: Read, document: Json) -> None:
    said = " ".join(page.texts)
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert f"{method.upper()} {path}" in said and operation["summary"] in said
            names = {each["name"] for each in operation.get("parameters", ())}
            assert names == (set(PARAMETERS) if path in (SEGMENT, BATCH) else set())
            assert names <= set(page.texts)
            for status, answer in operation["responses"].items():
                assert status in page.texts and answer["description"] in said
    for name, schema in document["components"]["schemas"].items():
        assert {name, *schema.get("properties", ())} <= set(page.texts)


def test_texts_of_a_bundle_are_no_markup(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    text = (bundle.path / "manifest.json").read_text().replace('"tiny"', '"<script>x</script>"')
    (bundle.path / "manifest.json").write_text(text)
    with running(Bundle(bundle.path)) as started:
        html = started.client.get("/docs").text
    assert "&lt;script&gt;x" in html and "<script" not in html


def test_examples_are_as_their_schemas_say(document: Json) -> None:
    tried = 0
    for path in (SEGMENT, BATCH):
        for answer in document["paths"][path]["post"]["responses"].values():
            for content in answer["content"].values():
                examples = [each["value"] for each in content.get("examples", {}).values()]
                examples += [content["example"]] if "example" in content else []
                validator = jsonschema_rs.validator_for(content["schema"] | {"components": document["components"]})
                assert not validator.is_valid("no such thing") or not examples
                for example in examples:
                    validator.validate(example)
                    tried += 1
    assert tried == 2 * (3 + 8), "three documents and eight errors for each of two paths"


def test_examples_have_what_answers_have(server: Running, document: Json) -> None:
    content = document["paths"][SEGMENT]["post"]["responses"]["200"]["content"]
    examples = content["application/json"]["examples"] | content["application/geo+json"]["examples"]
    for format in ("json", "coco", "geojson"):
        example, answer = examples[format]["value"], server.segment(IMAGE, format=format).json()
        for several in ("classes", "images", "annotations", "categories", "features"):
            if several in example:
                assert example[several][0].keys() == answer[several][0].keys()
        assert example.keys() == answer.keys()


def calls() -> list[str]:
    """The calls of curl in documents."""
    lines = [
        line
        for name in ("page.md", "embedding.md")
        for block in blocks(REPO / "docs" / name, "bash")
        for line in block.splitlines()
    ]
    return [line for line in lines if line.startswith("curl ")]


def described(document: Json) -> list[str]:
    texts = [document["paths"][path]["post"]["description"] for path in (SEGMENT, BATCH)]
    return [line.strip() for text in texts for line in text.splitlines() if line.startswith("    curl ")]


def test_calls_can_be_copied(server: Running, document: Json, tmp_path: Path) -> None:
    """Those of the documents and of the description, to the letter but for the address."""
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    for name in ("street.jpg", "photo.jpg"):
        assert cv2.imwrite(str(tmp_path / name), random_image(32, 64))
    shown = calls()
    assert len(shown) >= 3 and len(described(document)) == 5
    for call in shown + described(document):
        command = call.replace(STATED, server.url)
        assert command != call
        said = subprocess.run(
            ["bash", "-euc", command.replace("curl ", "curl -sS --fail-with-body ", 1)],
            cwd=tmp_path, capture_output=True, timeout=30, check=False,
        )  # fmt: skip
        assert said.returncode == 0, (call, said.stderr, said.stdout)
        if "format=json" in call or "format=coco" in call:
            json.loads(said.stdout)
    assert (tmp_path / "mask.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "masks.zip").read_bytes().startswith(b"PK")
