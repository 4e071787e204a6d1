"""Signatures: what Python's `verify` refuses, the C++ runtime refuses too."""

from __future__ import annotations

import base64
import json
import random
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cpp import Library, built, run
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hostile import tiny_bundle
from signing import CHANGES, certified, new_key
from support import ASSETS

from denseport.runtime.bundle.bundle import MANIFEST
from denseport.runtime.bundle.signature import SIGNATURE, sign, verify
from denseport.runtime.errors import BundleError, DenseportError

Keys = tuple[Path, Path]
IMAGE = sorted((ASSETS / "street/images").rglob("*.jpg"))[0]


@pytest.fixture(scope="module")
def library() -> Library:
    return Library()


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """Of the maker of the bundle: private and public."""
    return new_key(tmp_path, "maker")


@pytest.fixture
def signed(tmp_path: Path, keys: Keys) -> Path:
    bundle = tiny_bundle(tmp_path / "bundle")
    sign(bundle, keys[0])
    return bundle.path


def said(library: Library, bundle: Path, trust: Path) -> str:
    """Why it is refused; empty: it is opened."""
    code, segmenter = library.try_open(bundle, "model.onnx", trust=trust)
    if code == 0:
        library.close(segmenter)
    return library.error() if code else ""


def said_by_python(bundle: Path, trust: Path) -> str:
    try:
        verify(bundle, trust)
    except DenseportError as err:
        return err.message
    return ""


def test_the_makers_key_opens_it_and_no_other(library: Library, signed: Path, keys: Keys, tmp_path: Path) -> None:
    other = new_key(tmp_path, "other")
    assert said(library, signed, keys[1]) == ""
    (tmp_path / "link").symlink_to(signed)
    assert said(library, tmp_path / "link", keys[1]) == ""
    assert "not signed by whom you trust, but by the key" in said(library, signed, other[1])
    sign(signed, other[0])
    assert "not signed by whom you trust, but by the key" in said(library, signed, keys[1])
    assert said(library, signed, other[1]) == ""


@pytest.mark.parametrize("curve", [ec.SECP384R1, ec.SECP521R1, ec.SECP256K1, ec.BrainpoolP256R1])
def test_keys_on_the_curves_of_the_format(
    library: Library, signed: Path, tmp_path: Path, curve: type[ec.EllipticCurve]
) -> None:
    key, public = ec.generate_private_key(curve()), tmp_path / "curve.pub"
    pem = serialization.Encoding.PEM
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "curve.key").write_bytes(private)
    if curve in (ec.SECP384R1, ec.SECP521R1):
        sign(signed, tmp_path / "curve.key")
        assert said(library, signed, public) == ""
    else:
        assert "nobody can be verified with it" in said(library, signed, public)
        assert "nobody can be verified with it" in said_by_python(signed, public)


@pytest.mark.parametrize("name", [MANIFEST, "model.onnx", SIGNATURE])
def what_is_signed(signature: bytes) -> list[bytes]:
    envelope = json.loads(signature)["dsseEnvelope"]
    return [base64.b64decode(text) for text in (envelope["payload"], envelope["signatures"][0]["sig"])]


@pytest.mark.parametrize("name", [MANIFEST, "model.onnx", SIGNATURE])
def test_every_flipped_byte_is_found(library: Library, signed: Path, keys: Keys, name: str) -> None:
    """But in the signature's file where it names what nobody signs, such as the number of an entry in a log."""
    file, rng = signed / name, random.Random(0)
    whole = file.read_bytes()
    for at, byte in enumerate(whole):
        file.write_bytes(altered := whole[:at] + bytes([byte ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        if not said(library, signed, keys[1]):
            assert name == SIGNATURE and what_is_signed(altered) == what_is_signed(whole), f"byte {at}"
    file.write_bytes(whole)
    assert said(library, signed, keys[1]) == ""


@pytest.mark.parametrize("name", CHANGES)
def test_what_else_changes_a_bundle_is_refused(library: Library, signed: Path, keys: Keys, name: str) -> None:
    change, words = CHANGES[name]
    change(signed)
    assert words in said(library, signed, keys[1])
    assert words in said_by_python(signed, keys[1])


def test_what_is_no_public_key_is_refused_by_name(library: Library, signed: Path, keys: Keys, tmp_path: Path) -> None:
    _, certificate = certified(tmp_path, "root", datetime.now(UTC))
    (tmp_path / "empty").touch()
    for file, words in (
        (certificate, "a certificate, which Python's runtime alone checks"),
        (keys[0], "no public key"),
        (tmp_path / "empty", "no public key"),
        (tmp_path / "none", "No such file"),
    ):
        assert f"trust {file}: nobody can be verified with it: {words}" in said(library, signed, file)


def test_a_certificates_signature_is_refused_by_name(library: Library, keys: Keys, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "certified")
    key, certificate = certified(tmp_path, "root", datetime.now(UTC))
    sign(bundle, key, certificate=certificate)
    assert "a certificate's, which Python alone checks" in said(library, bundle.path, keys[1])


def test_the_program_says_whether_a_signature_was_checked(signed: Path, keys: Keys, tmp_path: Path) -> None:
    program, other = built("release/denseport-cpp"), new_key(tmp_path, "other")
    assert "signed, not checked: --trust FILE" in run(program, "inspect", signed).stdout
    assert "signed by whom you trust" in run(program, "inspect", signed, "--trust", keys[1]).stdout
    either = ("--trust", other[1], "--trust", keys[1])
    assert "signed by whom you trust" in run(program, "inspect", signed, *either).stdout
    done = run(program, "run", signed, IMAGE, "-o", tmp_path / "mask.png", "--trust", other[1])
    assert done.returncode == 2 and "not signed by whom you trust" in done.stderr
    assert not (tmp_path / "mask.png").exists()
    unsigned = shutil.copytree(signed, tmp_path / "unsigned", ignore=shutil.ignore_patterns(SIGNATURE))
    assert "signed" not in run(program, "inspect", unsigned).stdout.replace(str(unsigned), "")


def test_the_sanitized_program_finds_nothing_in_them(signed: Path, keys: Keys) -> None:
    program, file = built("sanitized/denseport-cpp"), signed / SIGNATURE
    assert run(program, "inspect", signed, "--artifact", "model.onnx", "--trust", keys[1]).returncode == 0
    whole, rng = file.read_bytes(), random.Random(1)
    for at in rng.sample(range(len(whole)), 20):
        file.write_bytes(whole[:at] + rng.randbytes(rng.randrange(3)) + whole[at + 1 :])
        run(program, "inspect", signed, "--artifact", "model.onnx", "--trust", keys[1])


def test_verify_itself_refuses_another(signed: Path, tmp_path: Path) -> None:
    """The comparison above would hold of a `verify` that accepts all."""
    with pytest.raises(BundleError):
        verify(signed, new_key(tmp_path, "other")[1])
