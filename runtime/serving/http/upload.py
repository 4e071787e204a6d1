"""The image of a request, a form's file or the whole body, in memory: nothing of a request is ever written to disk."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from denseport.runtime.serving.http.limits import Refusal

if TYPE_CHECKING:
    from starlette.datastructures import Headers
    from starlette.requests import Request

__all__ = ["FIELD", "IMAGE_TYPES", "read_upload"]

FIELD = "image"  # of the form
# Content types of a body that is an image. Which one, the image itself tells.
IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp", "image/bmp", "application/octet-stream")
_EXAMPLE = (
    f"Send a form: curl -F {FIELD}=@street.jpg URL; or the image as the body: "
    "curl -H 'Content-Type: image/jpeg' --data-binary @street.jpg URL"
)
# RFC 2046, section 5.1.1. Other parameters are ignored: Python would load the codec that a charset names.
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]{1,70}")


async def read_upload(request: Request, max_bytes: int) -> bytes:
    """The bytes of the image: the body itself, or the one file of a form.

    Raises:
        Refusal: 400, neither an image nor such a form, or a damaged one; 413, by `Admission`.
    """
    from python_multipart.multipart import parse_options_header
    from starlette.requests import ClientDisconnect

    kind, options = parse_options_header(request.headers.get("content-type", ""))
    try:
        if kind.decode("latin-1") in IMAGE_TYPES:
            return await request.body()
        return await _read_form(request, kind, options, max_bytes)
    except ClientDisconnect as err:
        raise Refusal(400, "the client went away") from err


async def _read_form(request: Request, kind: bytes, options: dict[bytes, bytes], max_bytes: int) -> bytes:
    """The file of a form of this content type and its parameters."""
    from starlette.datastructures import UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser

    class InMemory(MultiPartParser):
        spool_max_size = max_bytes + 1  # beyond it Starlette makes a file in /tmp

    headers = _form_headers(kind, options)
    try:
        form = await InMemory(headers, request.stream(), max_files=1, max_fields=0).parse()
    except MultiPartException as err:
        raise Refusal(400, f"the form is damaged: {err.message}", _EXAMPLE) from err
    try:
        image = form.get(FIELD)
        if not isinstance(image, UploadFile):
            raise Refusal(400, f"the form has no file {FIELD!r}", _EXAMPLE)
        return await image.read()
    finally:
        await form.close()


def _form_headers(kind: bytes, options: dict[bytes, bytes]) -> Headers:
    """A form's content type, with its boundary and nothing else."""
    from starlette.datastructures import Headers

    if kind != b"multipart/form-data":
        raise Refusal(400, "the request is neither multipart/form-data nor an image", _EXAMPLE)
    boundary = options.get(b"boundary", b"")
    if not _BOUNDARY.fullmatch(boundary):
        raise Refusal(400, "the form is damaged: it has no boundary of at most 70 letters", _EXAMPLE)
    return Headers(raw=[(b"content-type", b'multipart/form-data; boundary="%b"' % boundary)])
