"""A signed bundle is run as it was signed, or not at all."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from command_line import refused
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from hostile import tiny_bundle
from hypothesis import given, settings
from hypothesis import strategies as st
from model_signing import hashing, signing, verifying
from signing import CHANGES, certified, new_key

from denseport.runtime import Bundle, Segmenter
from denseport.runtime.bundle.signature import SIGNATURE, read_signature, sign, verify
from denseport.runtime.errors import BundleError, InputError
from denseport.runtime.segmenter.opening import open_predictor
from denseport.runtime.system.files import WORK, sha256_of, work_folder

Keys = tuple[Path, Path]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """Of the maker of bundles: private and public."""
    return new_key(tmp_path_factory.mktemp("keys"), "maker")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return new_key(tmp_path_factory.mktemp("keys"), "other")


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Path:
    """A signed bundle, not to be changed."""
    bundle = tiny_bundle(tmp_path_factory.mktemp("signed") / "bundle")
    sign(bundle, keys[0])
    return bundle.path


@pytest.fixture
def signed(master: Path, tmp_path: Path) -> Path:
    return shutil.copytree(master, tmp_path / "bundle")


def test_a_signature_holds_wherever_the_bundle_lies(signed: Path, keys: Keys, other: Keys, tmp_path: Path) -> None:
    found = verify(signed, keys[1])
    assert found.files == {name: sha256_of(signed / name) for name in ("manifest.json", "model.onnx")}
    assert found.subject is None and found.signer == f"the key {sha256_of(keys[1])[:16]}…"
    (tmp_path / "link").symlink_to(signed.rename(tmp_path / "elsewhere"))
    assert verify(tmp_path / "link", [other[1], str(keys[1])]) == found
    with Segmenter(tmp_path / "link", trust=keys[1]) as segment:
        assert segment.bundle.path == tmp_path / "link"


def test_other_programs_verify_it_and_theirs_is_verified(signed: Path, keys: Keys) -> None:
    """By model-signing as it comes, which leaves the signature itself out."""
    by = verifying.Config().use_elliptic_key_verifier(public_key=keys[1])
    by.verify(signed, signed / SIGNATURE)
    ignored = hashing.Config().set_ignored_paths(paths=[SIGNATURE])
    maker = signing.Config().use_elliptic_key_signer(private_key=keys[0]).set_hashing_config(ignored)
    maker.sign(signed, signed / SIGNATURE)
    assert set(verify(signed, keys[1]).files) == {"manifest.json", "model.onnx"}


FILES = ("manifest.json", "model.onnx")


@settings(max_examples=40)
@given(data=st.data())
def test_every_flipped_byte_is_found(master: Path, keys: Keys, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(FILES))
    file = master / name
    whole = file.read_bytes()
    at, mask = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(1, 255))
    try:
        file.write_bytes(whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1 :])
        with pytest.raises(BundleError) as caught:
            verify(master, keys[1])
        with pytest.raises(BundleError):
            Segmenter(master, trust=keys[1])
    finally:
        file.write_bytes(whole)
    if name == "model.onnx":
        assert "signed before it changed: model.onnx altered" in str(caught.value)


@settings(max_examples=40)
@given(data=st.data())
def test_a_damaged_signature_is_refused_or_says_the_same(master: Path, keys: Keys, data: st.DataObject) -> None:
    """Its text has places that mean nothing, such as the number of an entry that a key's signature lacks."""
    file = master / SIGNATURE
    whole = file.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = data.draw(st.one_of(st.just(b""), st.binary(min_size=1, max_size=3)))
    rest = data.draw(st.sampled_from((b"", whole[at + 1 :])))
    try:
        file.write_bytes(whole[:at] + changed + rest)
        try:
            assert verify(master, keys[1]).files == {name: sha256_of(master / name) for name in FILES}
        except BundleError as err:
            assert SIGNATURE in err.message and err.remedy
    finally:
        file.write_bytes(whole)


@pytest.mark.parametrize("name", CHANGES)
def test_what_else_changes_a_bundle_is_refused(signed: Path, keys: Keys, name: str) -> None:
    change, words = CHANGES[name]
    change(signed)
    with pytest.raises(BundleError) as caught:
        verify(signed, keys[1])
    assert words in str(caught.value) and caught.value.remedy
    with pytest.raises(BundleError):
        open_predictor(signed, trust=keys[1])


def _resigned(signed: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Writes the signature with its JSON, or that of what is signed, changed."""
    data = json.loads((signed / SIGNATURE).read_bytes())
    statement = json.loads(base64.b64decode(data["dsseEnvelope"]["payload"]))
    change(data, statement)
    data["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement, indent=2).encode()).decode()
    (signed / SIGNATURE).write_text(json.dumps(data))


def test_another_s_key_is_refused_whatever_the_signature_says(signed: Path, keys: Keys, other: Keys) -> None:
    for trust in (keys[1], [keys[1]]):
        sign(signed, other[0])
        with pytest.raises(BundleError, match="not signed by whom you trust, but by the key") as caught:
            Segmenter(signed, trust=trust)
        assert sha256_of(other[1])[:16] in str(caught.value) and str(keys[1]) in str(caught.value)
    ours = sha256_of(keys[1])  # the hash of the key is in the signature, and not signed
    _resigned(signed, lambda data, _: data["verificationMaterial"]["publicKey"].update(hint=ours))
    with pytest.raises(BundleError, match="not signed by whom you trust"):
        verify(signed, keys[1])
    _resigned(signed, lambda data, _: data["verificationMaterial"]["publicKey"].pop("hint"))
    with pytest.raises(BundleError, match="does not name its key"):
        verify(signed, keys[1])


def test_a_right_signature_of_other_files_or_of_fewer_is_refused(signed: Path, keys: Keys) -> None:
    (signed / "model.onnx").write_bytes((signed / "model.onnx").read_bytes() + b"\0")

    def claim(_: dict[str, Any], statement: dict[str, Any]) -> None:
        statement["predicate"]["resources"][1]["digest"] = sha256_of(signed / "model.onnx")

    _resigned(signed, claim)
    with pytest.raises(BundleError, match="not signed by whom you trust"):
        verify(signed, keys[1])
    ignored = hashing.Config().set_ignored_paths(paths=[SIGNATURE, "model.onnx"])
    maker = signing.Config().use_elliptic_key_signer(private_key=keys[0]).set_hashing_config(ignored)
    maker.sign(signed, signed / SIGNATURE)
    with pytest.raises(BundleError, match=r"model\.onnx added"):
        verify(signed, keys[1])


def test_what_is_recorded_later_must_be_signed_again(signed: Path, keys: Keys, call: Any) -> None:
    Bundle(signed).note("model.onnx", {"accuracy_of_mine": 1})
    with pytest.raises(BundleError, match=r"signed before it changed: manifest\.json altered") as caught:
        Segmenter(signed, trust=keys[1])
    assert caught.value.remedy and f"sign it again: denseport sign {signed} --key" in caught.value.remedy
    for command in ("bench", "build", "calibrate", "eval --record", "--fit-temperature"):  # all that change a bundle
        assert command in caught.value.remedy
    assert "the manifest changed since: denseport sign" in call("inspect", signed)[1]
    sign(signed, keys[0])
    verify(signed, keys[1])


def test_the_manifest_that_was_read_is_the_one_that_was_signed(signed: Path, keys: Keys) -> None:
    whole = (signed / "manifest.json").read_bytes()
    (signed / "manifest.json").write_bytes(whole.replace(b'"name": "', b'"name": "evil ', 1))
    bundle = Bundle(signed)
    (signed / "manifest.json").write_bytes(whole)
    with pytest.raises(BundleError, match="changed while it was verified"):
        Segmenter(bundle, trust=keys[1])
    trusted = Bundle(signed)
    verify(trusted, keys[1])
    (signed / "model.onnx").write_bytes(b"\x08\x08")  # between the check and the opening
    with pytest.raises(BundleError, match="altered since it was written"):
        Segmenter(trusted)


def test_what_is_not_whole_is_not_signed(signed: Path, keys: Keys) -> None:
    (signed / "model.onnx").write_bytes(b"\x08\x08")
    before = (signed / SIGNATURE).read_bytes()
    with pytest.raises(BundleError, match="altered since it was written"):
        sign(signed, keys[0])
    assert (signed / SIGNATURE).read_bytes() == before


@pytest.mark.parametrize("name", ["link", "no text"])
def test_what_cannot_be_signed_is_named(signed: Path, keys: Keys, name: str) -> None:
    CHANGES[name][0](signed)
    before = (signed / SIGNATURE).read_bytes()
    with pytest.raises(BundleError, match=r"does not name a file|cannot be signed"):
        sign(signed, keys[0])
    assert (signed / SIGNATURE).read_bytes() == before


def test_certificates(signed: Path, tmp_path: Path) -> None:
    """One that expired counts as when it began: a bundle is verified years after it was signed."""
    past = datetime.now(UTC) - timedelta(days=1000)
    root, stranger = certified(tmp_path, "root", past), certified(tmp_path, "stranger", past)
    key, certificate = certified(tmp_path, "Release Team", past, root)
    sign(signed, key, certificate=certificate)
    assert verify(signed, root[1]).signer.endswith("of CN=Release Team")
    with pytest.raises(BundleError, match="not signed by whom you trust"):
        verify(signed, stranger[1])
    with pytest.raises(InputError, match="does not match"):
        sign(signed, stranger[0], certificate=certificate)


def test_keys_that_cannot_be_used_are_named(signed: Path, keys: Keys, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    for trust, words in {
        keys[0]: "a private key; its public one: openssl pkey",
        tmp_path / "text": r"nobody can be verified with it: Unable to load PEM file\.\n",
        tmp_path / "none": "No such file",
        tmp_path: "Is a directory",
    }.items():
        with pytest.raises(InputError, match=words) as caught:
            verify(signed, trust)
        assert str(trust) in str(caught.value) and caught.value.remedy
    with pytest.raises(InputError, match="nobody is trusted"):
        verify(signed, ())
    for key in (keys[1], tmp_path / "none"):
        with pytest.raises(InputError, match="cannot sign with it"):
            sign(signed, key)
    private, public = ed25519.Ed25519PrivateKey.generate(), tmp_path / "ed25519.pub"
    kinds = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (tmp_path / "ed25519.key").write_bytes(private.private_bytes(*kinds))
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(private.public_key().public_bytes(serialization.Encoding.PEM, spki))
    with pytest.raises(InputError, match="cannot sign with it: not on an elliptic curve"):
        sign(signed, tmp_path / "ed25519.key")
    with pytest.raises(InputError, match="nobody can be verified with it: not on an elliptic curve"):
        verify(signed, public)


def test_a_key_in_the_bundle_is_not_signed_with(signed: Path, keys: Keys) -> None:
    """It would be given to everybody, and be signed with the rest."""
    before = (signed / SIGNATURE).read_bytes()
    key = Path(shutil.copy(keys[0], signed))
    with pytest.raises(InputError, match="lies in the bundle"):
        sign(signed, signed.parent / "bundle" / ".." / "bundle" / key.name)
    assert (signed / SIGNATURE).read_bytes() == before


def test_a_key_is_no_certificate_and_the_other_way_round(signed: Path, keys: Keys, tmp_path: Path) -> None:
    key, certificate = certified(tmp_path, "root", datetime.now(UTC) - timedelta(days=1))
    with pytest.raises(BundleError, match="a key, where a certificate signed, or the other way round"):
        verify(signed, certificate)
    sign(signed, key, certificate=certificate)
    with pytest.raises(BundleError, match="a key, where a certificate signed, or the other way round"):
        verify(signed, keys[1])


def test_a_certificate_that_nobody_would_take_signs_nothing(signed: Path, tmp_path: Path) -> None:
    before = (signed / SIGNATURE).read_bytes()
    key, certificate = certified(tmp_path, "root", datetime.now(UTC) - timedelta(days=1), signs=False)
    with pytest.raises(InputError, match="allows neither the key usage digitalSignature nor codeSigning"):
        sign(signed, key, certificate=certificate)
    assert (signed / SIGNATURE).read_bytes() == before


def test_a_name_adds_no_line_to_what_is_printed(signed: Path, keys: Keys, tmp_path: Path, call: Any) -> None:
    (signed / "x\nsigned by the key").touch()
    err = call("verify", signed, "--trust", keys[1])[2]
    assert "x\\nsigned by the key added" in err and len(err.splitlines()) == 2
    (signed / "x\nsigned by the key").unlink()
    key, certificate = certified(tmp_path, "root\nsigned by you", datetime.now(UTC) - timedelta(days=1))
    sign(signed, key, certificate=certificate)
    out = call("verify", signed, "--trust", certificate)[1]
    assert "of CN=root\\nsigned by you" in out and len(out.splitlines()) == 1


def test_what_is_being_built_is_not_signed(signed: Path, keys: Keys) -> None:
    before = (signed / SIGNATURE).read_bytes()
    with work_folder(signed) as work:
        (work / "int8.onnx").touch()
        with pytest.raises(BundleError, match="another process builds in the bundle"):
            sign(signed, keys[0])
    assert (signed / SIGNATURE).read_bytes() == before
    (signed / f"{WORK}0123456789ab").mkdir()  # of a process that was killed
    assert set(sign(signed, keys[0]).files) == set(FILES)


def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(
    signed: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    (signed / "hidden").mkdir()
    list_folder = os.scandir

    def denied(place: Any = ".") -> Any:  # root may read everything
        if str(place).endswith("hidden"):
            raise PermissionError(13, "Permission denied", str(place))
        return list_folder(place)

    monkeypatch.setattr(os, "scandir", denied)
    for refuse in (lambda: sign(signed, keys[0]), lambda: verify(signed, keys[1])):
        with pytest.raises(BundleError, match=r"Permission denied: '.*/hidden'"):
            refuse()


def test_the_commands(signed: Path, keys: Keys, other: Keys, tmp_path: Path, call: Any) -> None:
    locked, public = new_key(tmp_path, "locked", b"secret")
    (tmp_path / "password").write_text("secret\n")
    code, out, _ = call("sign", signed, "--key", locked, "--password-file", tmp_path / "password")
    assert code == 0 and "2 files signed by the key" in out
    (tmp_path / "bom").write_bytes(b"\xef\xbb\xbfsecret\r\n")  # as Windows' Notepad writes it
    assert call("sign", signed, "--key", locked, "--password-file", tmp_path / "bom")[0] == 0
    (tmp_path / "empty").touch()
    refused(call("sign", signed, "--key", locked, "--password-file", tmp_path / "empty"), "its first line is empty")
    refused(call("sign", signed, "--key", locked), "cannot sign with it")
    refused(call("sign", signed, "--key", locked, "--chain", public), "--chain belongs to a certificate")
    refused(call("sign", signed, "--key", locked, "--password-file", tmp_path / "none"), "--password-file")
    code, out, _ = call("verify", signed, "--trust", other[1], "--trust", public, "--json")
    assert code == 0 and json.loads(out)["sha256"] == sha256_of(public)
    assert "none of its 2 files changed" in call("verify", signed, "--trust", public)[1]
    assert f"by the key {sha256_of(public)[:16]}" in call("inspect", signed)[1]
    image = Path(__file__).parents[2] / "assets/street/images"
    refused(call("verify", signed), "--trust")
    remote = ("--server", "http://127.0.0.1:9", "--trust", public)
    refused(call("run", signed, image, "-o", tmp_path / "out", *remote), "--trust is for running it on this machine")
    assert not (tmp_path / "out").exists()
    (signed / SIGNATURE).write_text("{}")
    assert "no signature that can be read" in call("inspect", signed)[1]
    (signed / SIGNATURE).unlink()
    assert "signature      none" in call("inspect", signed)[1]
    assert read_signature(signed) is None


OFFLINE = """
import socket, sys
def refuse(*_, **__):
    raise AssertionError("the network was asked for")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
from denseport.runtime import Segmenter
Segmenter(sys.argv[1], trust=sys.argv[2]).close()
"""


def test_verifying_asks_no_server_and_writes_nothing(signed: Path, keys: Keys, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    environment = os.environ | {"HOME": str(tmp_path / "home")}
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        environment.pop(name, None)
    before = sorted(signed.iterdir())
    subprocess.run([sys.executable, "-c", OFFLINE, signed, keys[1]], env=environment, check=True, cwd=tmp_path)
    assert not [*(tmp_path / "home").rglob("*")] and sorted(signed.iterdir()) == before
