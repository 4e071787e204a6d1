"""The picture of a multipart request, read into memory: nothing of a request is ever written to disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from denseport.runtime.serve.limits import Refusal

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["FIELD", "read_upload"]

FIELD = "image"  # of the form
_EXAMPLE = f"Send a form: curl -F {FIELD}=@street.jpg URL"


async def read_upload(request: Request, max_bytes: int) -> bytes:
    """The bytes of the one file in a multipart/form-data request.

    Raises:
        Refusal: 400, no such form or a damaged one; 413, from the door.
    """
    from starlette.datastructures import UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser
    from starlette.requests import ClientDisconnect

    class InMemory(MultiPartParser):
        spool_max_size = max_bytes + 1  # beyond it Starlette makes a file in /tmp

    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Refusal(400, "the request is no multipart/form-data", _EXAMPLE)
    try:
        form = await InMemory(request.headers, request.stream(), max_files=1, max_fields=0).parse()
    except MultiPartException as err:
        raise Refusal(400, f"the form is damaged: {err.message}", _EXAMPLE) from err
    except ClientDisconnect as err:
        raise Refusal(400, "the client went away") from err
    try:
        picture = form.get(FIELD)
        if not isinstance(picture, UploadFile):
            raise Refusal(400, f"the form has no file {FIELD!r}", _EXAMPLE)
        return await picture.read()
    finally:
        await form.close()
