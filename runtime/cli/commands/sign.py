"""``denseport sign``: a signature over all files of a bundle."""

from __future__ import annotations

import argparse
import sys

from denseport.runtime.cli.arguments import path
from denseport.runtime.system.text import count

HELP = "sign a bundle, so that others can tell that nothing in it was altered"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=path, help="a bundle's folder")
    key = "private key on P-256, P-384 or P-521 (PEM)"
    parser.add_argument("--key", metavar="FILE", type=path, required=True, help=key)
    parser.add_argument("--password-file", metavar="FILE", type=path, help="its first line is the key's password")
    parser.add_argument("--certificate", metavar="FILE", type=path, help="the key's certificate (PEM)")
    parser.add_argument(
        "--chain",
        metavar="FILE",
        type=path,
        nargs="+",
        default=[],
        help="certificates (PEM) between that one and those that are trusted",
    )


def run(arguments: argparse.Namespace) -> int:
    from denseport.runtime.bundle.signature import SIGNATURE, sign
    from denseport.runtime.errors import InputError

    given = arguments
    if given.chain and given.certificate is None:
        raise InputError("--chain belongs to a certificate, and none is given", "Give --certificate too.")
    if given.password_file is not None and given.certificate is not None:
        what = "--password-file: with --certificate, model-signing takes a key without a password only"
        raise InputError(what, "Give such a key, or leave the certificate out.")
    password = None
    if given.password_file is not None:
        try:
            password = given.password_file.read_text(encoding="utf-8-sig").partition("\n")[0]
        except (OSError, UnicodeDecodeError) as err:
            raise InputError(f"--password-file {given.password_file}: {err}", "Give a file of text.") from err
        if not password:
            what = f"--password-file {given.password_file}: its first line is empty"
            raise InputError(what, "Write the password there.")
    done = sign(given.bundle, given.key, certificate=given.certificate, chain=given.chain, password=password)
    print(f"{given.bundle / SIGNATURE}: {count(len(done.files), 'file')} signed by {done.signer}")
    if given.certificate is None:
        print(f"others verify with its public key: openssl pkey -in {given.key} -pubout", file=sys.stderr)
    return 0
