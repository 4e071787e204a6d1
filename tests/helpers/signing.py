"""Keys and certificates, made by cryptography, which is no part of what is tested; changes of signed bundles."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from denseport.runtime.bundle.bundle import LOCK
from denseport.runtime.bundle.signature import SIGNATURE

__all__ = ["CHANGES", "certified", "new_key"]


def _replace(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def _link(path: Path) -> None:
    """The same bytes, from elsewhere."""
    path.symlink_to(path.rename(path.parents[1] / path.name))


# What changes a signed bundle: the change of its folder, and words of the refusal.
CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "file added": (lambda b: (b / "int8.onnx").touch(), "signed before it changed: int8.onnx added"),
    "in a folder": (lambda b: ((b / "more").mkdir(), (b / "more/x").touch()), "more/x added"),
    "hidden": (lambda b: (b / ".gitattributes").touch(), ".gitattributes added"),
    "removed": (lambda b: (b / "model.onnx").unlink(), "model.onnx removed"),
    "link": (lambda b: _link(b / "model.onnx"), "neither a file nor a folder of the bundle"),
    "link of the manifest": (lambda b: _link(b / "manifest.json"), "neither a file nor a folder of the bundle"),
    "link of a folder": (lambda b: (b / "more").symlink_to(b.parent), "neither a file nor a folder of the bundle"),
    "in a lock": (
        lambda b: ((b / LOCK).mkdir(), (b / LOCK / "x").touch()),
        "neither a file nor a folder of the bundle",
    ),
    "lock": (lambda b: (b / LOCK).mkdir(), "neither a file nor a folder of the bundle"),
    "no text": (lambda b: os.mknod(os.fsencode(b) + b"/\xff"), " added"),
    "pipe": (lambda b: os.mkfifo(b / "pipe"), "neither a file nor a folder of the bundle"),
    "unsigned": (lambda b: (b / SIGNATURE).unlink(), "not signed: no model.sig in it"),
    "signature a link": (lambda b: _link(b / SIGNATURE), "no ordinary file"),
    "signature a pipe": (lambda b: ((b / SIGNATURE).unlink(), os.mkfifo(b / SIGNATURE)), "no ordinary file"),
    "signature empty": (lambda b: _replace(b / SIGNATURE, b""), "no signature that can be read"),
    "signature nested": (lambda b: _replace(b / SIGNATURE, b"[" * 10**5), "no signature that can be read"),
    "signature a list": (lambda b: _replace(b / SIGNATURE, b"[]"), "no signature that can be read"),
}


def new_key(folder: Path, name: str, password: bytes | None = None) -> tuple[Path, Path]:
    """Files with a private key on P-256 and with its public key."""
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    key = ec.generate_private_key(ec.SECP256R1())
    private.write_bytes(_pem(key, password))
    kinds = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(*kinds))
    return private, public


def certified(
    folder: Path, name: str, start: datetime, issuer: tuple[Path, Path] | None = None, *, signs: bool = True
) -> tuple[Path, Path]:
    """Files with a private key and with its certificate, valid for a day; without ``issuer``, it is its own.

    Args:
        issuer: files with the private key and the certificate of whom issues it.
        signs: its use is to sign files; else only to issue certificates.
    """
    private, certificate = folder / f"{name}.key", folder / f"{name}.crt"
    key = ec.generate_private_key(ec.SECP256R1())
    private.write_bytes(_pem(key))
    subject = signer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    by = key
    if issuer is not None:
        found = serialization.load_pem_private_key(issuer[0].read_bytes(), None)
        assert isinstance(found, ec.EllipticCurvePrivateKey)
        by, signer = found, x509.load_pem_x509_certificate(issuer[1].read_bytes()).subject
    usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
    rest = {"encipher_only": False, "decipher_only": False, "crl_sign": False}
    made = (
        x509.CertificateBuilder(signer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=signs, key_cert_sign=issuer is None, **usage, **rest), critical=True
        )
        .sign(by, hashes.SHA256())
    )
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return private, certificate


def _pem(key: ec.EllipticCurvePrivateKey, password: bytes | None = None) -> bytes:
    how: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        how = serialization.BestAvailableEncryption(password)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)
