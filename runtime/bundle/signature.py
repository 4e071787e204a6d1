"""Signed bundles: the signature file, who is trusted, and what changed since it was signed.

The format is OpenSSF's model signing, and its own library (the package model-signing) signs and verifies: an in-toto
statement with the SHA-256 of every file, in a DSSE envelope, in a Sigstore bundle. Keys and certificates are files;
no server is asked. Source: https://github.com/ossf/model-signing-spec.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from denseport.runtime.bundle.bundle import LOCK, MANIFEST, Bundle
from denseport.runtime.errors import BundleError, InputError, is_out_of_memory
from denseport.runtime.system.arguments import required_path, several
from denseport.runtime.system.files import WORK, remove_abandoned, write_atomic
from denseport.runtime.system.machine import require
from denseport.runtime.system.terminal import one_line

__all__ = ["SIGNATURE", "Signature", "Trust", "read_signature", "sign", "verify"]

SIGNATURE = "model.sig"  # as model-signing's own command calls it; beside the manifest
UNSIGNED = (SIGNATURE, LOCK)  # every other file of the folder is signed
LARGEST_SIGNATURE = 16 << 20  # bytes; one of 100 files has 30 kB
SIGN = "denseport sign {} --key KEY"
_OTHER_KEY = "not on an elliptic curve"
_READABLE = "Check that it is a file that this user may read; else remove it and sign again."
Trust = Path | str | Sequence[Path | str]  # files of public keys or of certificates, PEM: one of them must have signed


@dataclass(frozen=True)
class Signature:
    """What a signature file says. Only `verify` tells whether it is true."""

    sha256: str  # of the public key as PEM, or of the certificate as DER
    files: dict[str, str]  # the signed ones: path below the bundle to sha256
    certificate: bytes | None = None  # of the signer, DER; None: a bare key signed
    subject: str | None = None  # whose certificate it is (RFC 4514); told by `verify` alone

    @property
    def manifest(self) -> str | None:
        """The SHA-256 of the manifest that was signed; None: it was not."""
        return self.files.get(MANIFEST)

    @property
    def signer(self) -> str:
        """Who signed, for people."""
        whose = f" of {self.subject}" if self.subject else ""
        return f"the {'certificate' if self.certificate else 'key'} {self.sha256[:16]}…{whose}"


def read_signature(folder: Path) -> Signature | None:
    """The signature of a bundle, unchecked; None where there is none. No library is needed.

    Raises:
        BundleError: it cannot be read.
    """
    file = folder / SIGNATURE
    if not file.exists() and not file.is_symlink():
        return None
    try:
        if file.is_symlink() or not file.is_file() or file.stat().st_size > LARGEST_SIGNATURE:
            raise ValueError(f"no ordinary file of at most {LARGEST_SIGNATURE >> 20} MiB")
        text = file.read_bytes()
    except (OSError, ValueError) as err:
        raise BundleError(f"{file}: no signature that can be read: {_words(err)}", _READABLE) from err
    try:
        data = json.loads(text)
        statement = json.loads(base64.b64decode(data["dsseEnvelope"]["payload"], validate=True))
        files = {str(each["name"]): str(each["digest"]) for each in statement["predicate"]["resources"]}
        material = data["verificationMaterial"]
        if "publicKey" in material:
            return Signature(_key(material["publicKey"].get("hint")), files)
        first = material["x509CertificateChain"]["certificates"][0]
        certificate = base64.b64decode(first["rawBytes"], validate=True)
        return Signature(hashlib.sha256(certificate).hexdigest(), files, certificate)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as err:
        raise BundleError(f"{file}: no signature that can be read: {_words(err)}", _again(folder)) from err


def _key(hint: object) -> str:
    if not isinstance(hint, str) or not re.fullmatch("[0-9a-f]{64}", hint):
        raise ValueError("it does not name its key, as those of model-signing since 1.0 do")
    return hint


def sign(
    bundle: Path | str | Bundle,
    key: Path | str,
    *,
    certificate: Path | str | None = None,
    chain: Iterable[Path | str] = (),
    password: str | None = None,
) -> Signature:
    """Sign all files of a bundle, its manifest with what was measured among them; a signature there is replaced.

    Args:
        key: a private key on P-256, P-384 or P-521, PEM.
        certificate: of that key, PEM; without one, those who verify need the public key itself.
        chain: certificates between that one and those that are trusted.
        password: of the key; keys with a certificate have none, since the library takes none.

    Raises:
        BundleError: a file is missing or altered, or an artifact is being built: what is not whole is not signed.
        InputError: the key or a certificate cannot be used, or the key lies in the bundle.
        MachineError: the package model-signing is not installed.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
    require(("model_signing", "OpenSSL"), "sign")
    from model_signing.signing import Config

    config = Config().set_hashing_config(hashing := _hashing())
    try:
        if certificate is not None:
            chain = [*chain] or [certificate]  # for the library an empty chain is no PEM
            _refuse_other_use(Path(certificate))
            config.use_certificate_signer(private_key=key, signing_certificate=certificate, certificate_chain=chain)
        else:  # the password is handed on to cryptography, which wants bytes, whatever the annotation says
            config.use_elliptic_key_signer(private_key=key, password=None if password is None else password.encode())
    except Exception as err:  # of the file system, cryptography and OpenSSL, which have classes of their own
        remedy = "Give a private key on P-256, P-384 or P-521 as PEM, its password if it has one, and its certificate."
        raise InputError(f"key {key}: cannot sign with it: {_words(err, _OTHER_KEY)}", remedy) from err
    if bundle.path.resolve() in Path(os.path.realpath(key)).parents:
        what = f"key {key}: lies in the bundle, which others get: whoever has a private key can sign"
        raise InputError(what, "Move it out of the bundle; if others got it already, make a new key.")
    with bundle.locked(), tempfile.TemporaryDirectory() as folder:  # elsewhere: all that is in the bundle is signed
        for name in bundle.manifest.artifacts:
            bundle.verified(name)
        try:
            remove_abandoned(bundle.path)
            _refuse_links(bundle.path)
            config.sign(bundle.path.resolve(), written := Path(folder) / SIGNATURE)
        except (OSError, ValueError) as err:  # ValueError: a file name that is no text
            what = f"{bundle.path}: cannot be signed: {_words(err)}"
            raise BundleError(what, "Remove what is no part of the bundle, and let this user read the rest.") from err
        if unfinished := [name for name in hashing.found if name.startswith(WORK)]:
            what = f"{bundle.path / unfinished[0]}: another process builds in the bundle"
            raise BundleError(what, "Sign it when that is done.")
        write_atomic(bundle.path / SIGNATURE, written.read_bytes())
    found = read_signature(bundle.path)
    assert found is not None  # it was just written
    return found


def verify(bundle: Path | str | Bundle, trust: Trust) -> Signature:
    """Check that somebody trusted signed a bundle, and that no file was altered, added or removed since.

    A `Bundle` that was verified holds the manifest that was signed, and opens only artifacts whose files have the
    hashes in it.

    Args:
        trust: public keys, or certificates that the signer's is issued under, PEM files. A certificate counts at the
            time from which it is valid: that it expired or was revoked is not noticed.

    Returns:
        What was signed, and by whom.

    Raises:
        BundleError: not signed, by another, or changed since.
        InputError: ``trust`` names no file, or one that holds neither a public key nor a certificate.
        MachineError: the package model-signing is not installed.
    """
    files = [required_path("trust", each) for each in several("trust", trust)]
    if not files:
        raise InputError("trust: nobody is trusted", "Name a file with a public key or a certificate (PEM).")
    require(("model_signing", "OpenSSL"), "sign")
    bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
    verifiers = {file: _verifier(file) for file in files}
    said = read_signature(bundle.path)
    if said is None:
        raise BundleError(f"{bundle.path}: not signed: no {SIGNATURE} in it", f"Sign it: {SIGN.format(bundle.path)}")
    reasons = []
    for file, verifier in verifiers.items():
        if (reason := _why_not(bundle, said, verifier)) is None:
            return replace(said, subject=_subject(said.certificate) if said.certificate else None)
        reasons.append(f"{file}: {reason}")
    told = f"{bundle.path / SIGNATURE}: not signed by whom you trust, but by {said.signer}: {'; '.join(reasons)}"
    raise BundleError(told, "Do not run it unless you know who signed it, and why.")


def _why_not(bundle: Bundle, said: Signature, verifier: Any) -> str | None:
    """Why a verifier's owner did not sign; None: they did, and the files are those that were signed."""
    hashing = _hashing()
    try:
        _refuse_links(bundle.path)
        verifier.set_hashing_config(hashing).verify(bundle.path.resolve(), bundle.path / SIGNATURE)
    except BundleError:
        raise
    except OSError as err:
        what = f"{bundle.path}: cannot be read: {_words(err)}"
        raise BundleError(what, "Check the permissions of its files.") from err
    except Exception as err:  # a hostile file makes JSON, pydantic, cryptography and OpenSSL fail in many ways
        if is_out_of_memory(err):
            raise
        if hashing.found is None:
            return _words(err, "a key, where a certificate signed, or the other way round")
        raise _changed(bundle, said, hashing.found) from err  # the signature is right, the files are others
    if hashing.found != said.files or said.manifest != bundle.digest:
        raise BundleError(f"{bundle.path}: changed while it was verified", "Verify it again when nobody writes it.")
    return None


def _subject(certificate: bytes) -> str:
    from cryptography.x509 import load_der_x509_certificate  # which model-signing needs

    return one_line(load_der_x509_certificate(certificate).subject.rfc4514_string())


def _refuse_other_use(certificate: Path) -> None:
    """Raises ValueError for a certificate that the library signs with, and then takes from nobody."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    extensions = x509.load_pem_x509_certificate(certificate.read_bytes()).extensions
    found: dict[type, Any] = {type(each.value): each.value for each in extensions}
    usage, more = found.get(x509.KeyUsage), found.get(x509.ExtendedKeyUsage, ())
    if not (usage and usage.digital_signature) and ExtendedKeyUsageOID.CODE_SIGNING not in more:
        raise ValueError(f"{certificate} allows neither the key usage digitalSignature nor codeSigning")


def _verifier(file: Path) -> Any:
    """The library's verifier for a public key or certificates; it raises InputError for anything else."""
    from model_signing.verifying import Config

    try:
        text = file.read_bytes()
        if b"-----BEGIN CERTIFICATE-----" in text:
            return Config().use_certificate_verifier(certificate_chain=[file])
        if b"PRIVATE KEY-----" in text:
            raise ValueError(f"a private key; its public one: openssl pkey -in {file} -pubout -out PUBLIC.pem")
        return Config().use_elliptic_key_verifier(public_key=file)
    except Exception as err:  # as in `sign`
        remedy = "Give a public key on P-256, P-384 or P-521, or certificates, as PEM."
        raise InputError(f"trust {file}: nobody can be verified with it: {_words(err, _OTHER_KEY)}", remedy) from err


def _hashing() -> Any:
    """The library's hashing of all files but `UNSIGNED`; ``found`` is what it found last: path to sha256."""
    from model_signing.hashing import Config

    class Recorded(Config):  # type: ignore[misc]
        found: dict[str, str] | None = None

        def hash(self, *arguments: Any, **named: Any) -> Any:
            manifest = super().hash(*arguments, **named)
            self.found = {each.identifier: each.digest.digest_hex for each in manifest.resource_descriptors()}
            return manifest

        def add_ignored_paths(self, **_: Any) -> None:
            """What a signature says should be left out is not: a file that nobody signed is found."""

    # Of git's files too: that they do no harm is not ours to promise.
    return Recorded().set_ignored_paths(paths=UNSIGNED, ignore_git_paths=False)


def _refuse_links(folder: Path) -> None:
    """Only files and folders can be signed; a link leads to what is not. What is left out of it must be a file."""

    def refuse(err: OSError) -> None:  # the library takes a folder that cannot be read for an empty one
        raise err

    paths = (Path(at, name) for at, *names in os.walk(folder, onerror=refuse) for each in names for name in each)
    for path in paths:
        left_out = path.relative_to(folder).as_posix() in UNSIGNED
        if path.is_symlink() or not (path.is_file() or (path.is_dir() and not left_out)):
            remedy = "Put the file itself in its place, or remove it."
            raise BundleError(f"{path}: neither a file nor a folder of the bundle itself", remedy)


def _changed(bundle: Bundle, said: Signature, found: dict[str, str]) -> BundleError:
    altered = [name for name in said.files if found.get(name, said.files[name]) != said.files[name]]
    kinds = {
        "altered": altered,
        "added": sorted(found.keys() - said.files.keys()),
        "removed": sorted(said.files.keys() - found.keys()),
    }
    told = "; ".join(f"{_some(names)} {kind}" for kind, names in kinds.items() if names)
    commands = "bench, build, calibrate, eval --record or --fit-temperature"
    remedy = f"If you know that change ({commands}), {_again(bundle.path, 'sign')}"
    return BundleError(f"{bundle.path}: signed before it changed: {told}", remedy)


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(one_line, names[:5])) + " …" * (len(names) > 5)


def _again(folder: Path, verb: str = "Sign") -> str:
    return f"{verb} it again: {SIGN.format(folder)}. Else do not run it."


def _words(err: Exception, stumbled: str = "") -> str:
    """What an error says; ``stumbled`` where the library ran into what it does not check."""
    text = stumbled if stumbled and isinstance(err, AttributeError) else " ".join(str(err).split())
    text = text.partition(" See https://")[0]  # cryptography's questions and answers, which lead elsewhere
    return text[:200] or type(err).__name__
