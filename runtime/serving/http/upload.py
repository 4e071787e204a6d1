"""What a request holds, in memory: its images, files of a form or the whole body. Nothing of it is written to disk."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING

from denseport.runtime.serving.http.limits import Refusal

if TYPE_CHECKING:
    from starlette.datastructures import Headers, QueryParams
    from starlette.requests import Request

__all__ = [
    "BATCH", "DEPTH", "FIELD", "IMAGE_TYPES", "PARAMETERS", "SEGMENT", "check_names", "read_image", "read_images"
]  # fmt: skip

# Where images are sent.
SEGMENT = "/v1/segment"
DEPTH = "/v1/depth"
BATCH = "/v1/batch"
PARAMETERS = ("format", "artifact", "opacity", "legend")  # of each
FIELD = "image"  # of the form
_FORM_TYPE = "multipart/form-data"
# Content types of a body that is an image. Which one, the image itself tells.
IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp", "image/bmp", "application/octet-stream")
_FORM = f"Send a form: curl -F {FIELD}=@street.jpg URL"
_EXAMPLE = f"{_FORM}; or the image as the body: curl -H 'Content-Type: image/jpeg' --data-binary @street.jpg URL"
# RFC 2046, section 5.1.1. Other parameters are ignored: Python would load the codec that a charset names.
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]{1,70}")
_MOST_TEXTS = 8  # of a form: none is taken, but the first is named


def check_names(given: QueryParams, known: Sequence[str]) -> None:
    """Refuse parameters that would be ignored: of another name, or given twice.

    Raises:
        Refusal: 422.
    """
    names = [name for name, _ in given.multi_items()]
    for name in names:
        if name not in known:
            there = f"The parameters are: {', '.join(known)}." if known else "It takes none."
            raise Refusal(422, f"there is no parameter {name!r}", there)
        if names.count(name) > 1:
            raise Refusal(422, f"the parameter {name!r} is given twice", "Give it once.")


async def read_image(request: Request, max_bytes: int) -> bytes:
    """The bytes of the image: the body itself, or the one file of a form.

    Raises:
        Refusal: 400, neither an image nor such a form, or a damaged one; 413, by `Admission`.
    """
    if _content_type(request)[0].decode("latin-1") not in IMAGE_TYPES:
        headers = _form_headers(request, (_FORM_TYPE, *IMAGE_TYPES), _EXAMPLE)
        several = Refusal(400, "the form has several files", f"Send one, or several to {BATCH}.")
        return (await _read_form(request, headers, max_bytes, 1, several))[0]
    from starlette.requests import ClientDisconnect

    try:
        return await request.body()
    except ClientDisconnect as err:
        raise Refusal(400, "the client went away") from err


async def read_images(request: Request, max_bytes: int, max_images: int) -> list[bytes]:
    """The bytes of the files of a form, in their order.

    Raises:
        Refusal: 400, no such form, or a damaged one; 413, more images, or by `Admission`.
    """
    headers = _form_headers(request, (_FORM_TYPE,), _FORM)
    too_many = Refusal(413, f"the form has more than {max_images} images", "Send them in several requests.")
    return await _read_form(request, headers, max_bytes, max_images, too_many)


async def _read_form(
    request: Request, headers: Headers, max_bytes: int, max_files: int, too_many: Refusal
) -> list[bytes]:
    """The files of a form, of which there is at least one."""
    from starlette.formparsers import MultiPartException, MultiPartParser
    from starlette.requests import ClientDisconnect

    class InMemory(MultiPartParser):
        spool_max_size = max_bytes + 1  # beyond it Starlette makes a file in /tmp
        is_whole = False

        def on_end(self) -> None:
            self.is_whole = True

    async def stream() -> AsyncGenerator[bytes]:
        async for data in request.stream():
            yield data
        if not parser.is_whole:  # Starlette takes what was complete till then
            raise MultiPartException("it has no last boundary")

    parser = InMemory(headers, stream(), max_files=max_files, max_fields=_MOST_TEXTS)
    try:
        form = await parser.parse()
    except MultiPartException as err:
        if err.message.startswith("Too many files"):
            raise too_many from err
        raise Refusal(400, f"the form is damaged: {err.message}", _FORM) from err
    except ClientDisconnect as err:
        raise Refusal(400, "the client went away") from err
    try:
        files = form.multi_items()
        for name, each in files:
            if isinstance(each, str):
                where = f"{_FORM}; parameters stand in the URL: {SEGMENT}?format=json."
                raise Refusal(400, f"the form has a text {name!r}; it takes only files, each called {FIELD!r}", where)
            if name != FIELD:
                raise Refusal(400, f"the form has a file {name!r}; each must be called {FIELD!r}", _FORM)
        if not files:
            raise Refusal(400, f"the form has no file {FIELD!r}", _FORM)
        return [await each.read() for _, each in files if not isinstance(each, str)]
    finally:
        await form.close()


def _form_headers(request: Request, taken: Sequence[str], remedy: str) -> Headers:
    """A form's content type, with its boundary and nothing else."""
    from starlette.datastructures import Headers

    kind, options = _content_type(request)
    if (found := kind.decode("latin-1")) != _FORM_TYPE:
        raise Refusal(400, f"the content type is {found[:80]!r}; taken are {', '.join(taken)}", remedy)
    boundary = options.get(b"boundary", b"")
    if not _BOUNDARY.fullmatch(boundary):
        raise Refusal(400, "the form is damaged: it has no boundary of at most 70 letters", remedy)
    return Headers(raw=[(b"content-type", b'multipart/form-data; boundary="%b"' % boundary)])


def _content_type(request: Request) -> tuple[bytes, dict[bytes, bytes]]:
    from python_multipart.multipart import parse_options_header

    return parse_options_header(request.headers.get("content-type", ""))
