"""``denseport verify``: whether a bundle is as somebody trusted signed it."""

from __future__ import annotations

import argparse
import json

from denseport.runtime.cli.arguments import add_trust, path
from denseport.runtime.system.text import count

HELP = "check a bundle's signature: who signed it, and that nothing changed since"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=path, help="a bundle's folder")
    add_trust(parser, required=True)
    parser.add_argument("--json", action="store_true", help="print the signer and the hash of each file as JSON")


def run(arguments: argparse.Namespace) -> int:
    from denseport.runtime.bundle.signature import verify

    found = verify(arguments.bundle, arguments.trust)
    if arguments.json:
        same = {"sha256": found.sha256, "subject": found.subject, "files": found.files}
        print(json.dumps({"signed_by": "certificate" if found.certificate else "key", **same}, indent=1))
    else:
        print(f"{arguments.bundle}: signed by {found.signer}; none of its {count(len(found.files), 'file')} changed")
    return 0
