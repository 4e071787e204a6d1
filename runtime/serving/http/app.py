"""The HTTP API and the page.

FastAPI is imported where it is used, so annotations must be evaluated there: no ``from __future__`` in this file.
"""

import asyncio
import re
from typing import TYPE_CHECKING, Annotated, Any

from denseport.runtime.errors import MachineError
from denseport.runtime.serving.http.admission import Admission
from denseport.runtime.serving.http.answers import AnswerOptions, Coco, Format, Report
from denseport.runtime.serving.http.limits import Refusal
from denseport.runtime.serving.http.metrics import Metrics
from denseport.runtime.serving.http.page import SAMPLE, load_page
from denseport.runtime.serving.http.schema import Failure, ModelInfo, State, describe
from denseport.runtime.serving.http.service import Service
from denseport.runtime.serving.http.upload import FIELD, IMAGE_TYPES, read_upload

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["SEGMENT", "create_app"]

SEGMENT = "/v1/segment"
SAFE = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}

# Of the description of `SEGMENT`.
FORMATS = (
    "mask: PNG; overlay: JPEG; json: classes and shares; raw: indices; coco: run lengths; geojson: polygons; "
    "npz: mask and scores, of numpy"
)
IMAGE = {"type": "string", "format": "binary", "description": "JPEG, PNG, WebP or BMP"}
FORM = {"type": "object", "required": [FIELD], "properties": {FIELD: IMAGE}, "additionalProperties": False}
BINARY = {"schema": {"type": "string", "format": "binary"}}
BODY = {"multipart/form-data": {"schema": FORM}, **{kind: {"schema": IMAGE} for kind in IMAGE_TYPES}}
CONTENT = {
    "image/png": BINARY,
    "image/jpeg": BINARY,
    "application/geo+json": {"schema": {"type": "object"}},
    "application/x-npz": BINARY,
    "application/octet-stream": BINARY,
}
ERRORS = {
    400: "The request or the image is damaged.",
    408: "The image did not arrive in time.",
    413: "More bytes, pixels or JPEG scans than the server takes.",
    415: "An image of another format.",
    422: "A parameter that does not fit, or an image without one whole patch.",
    500: "The server failed.",
    503: "The queue is full, or the server is shutting down; Retry-After says when to try again.",
    504: "No answer in time.",
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": Report | Coco, "description": "In the format asked for.", "content": CONTENT},
    **{status: {"model": Failure, "description": text} for status, text in ERRORS.items()},
}


def create_app(service: Service) -> Admission:
    """The ASGI application: FastAPI's, behind admission.

    Raises:
        MachineError: the extra ``serve`` is not installed.
    """
    try:
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        from fastapi import FastAPI
    except ImportError as err:
        raise MachineError(f"{err.name} is not installed", "pip install 'denseport[serve]'") from err
    app = FastAPI(
        title=f"Denseport: {service.manifest.name}",
        summary="Semantic segmentation: an image in, a mask out.",
        version="1",
        docs_url=None,  # both load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # they would lead to whatever host the request names
    )
    # Made before admission is, whose count it shows.
    metrics = Metrics(service.manifest.name, lambda: admission.active)
    admission = Admission(app, SEGMENT, service.limits, metrics.answered)
    _add_errors(app)
    _add_api(app, service, metrics)
    _add_states(app, service, metrics, admission)
    _add_page(app)
    return admission


def _add_errors(app: "FastAPI") -> None:
    """Every error in one form: what is wrong, and what mends it."""
    from fastapi import Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    @app.exception_handler(Refusal)
    async def refused(request: Request, err: Refusal) -> JSONResponse:
        return JSONResponse(err.body, err.status, err.headers)

    @app.exception_handler(RequestValidationError)
    async def mistyped(request: Request, err: RequestValidationError) -> JSONResponse:
        found = "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in err.errors())
        return JSONResponse({"error": found, "remedy": "See /openapi.json."}, 422)

    @app.exception_handler(HTTPException)
    async def not_found(request: Request, err: HTTPException) -> JSONResponse:
        return JSONResponse({"error": err.detail, "remedy": "See /openapi.json."}, err.status_code, err.headers)

    @app.exception_handler(Exception)
    async def broken(request: Request, err: Exception) -> JSONResponse:
        # Starlette raises it again after the answer, for the server to log.
        return JSONResponse({"error": "the server failed", "remedy": "See its log."}, 500)


def _add_api(app: "FastAPI", service: Service, metrics: Metrics) -> None:
    from fastapi import Query, Request
    from fastapi.responses import Response

    @app.get("/v1/model", tags=["model"], summary="What is served, and what was measured on it")
    async def model() -> ModelInfo:
        return describe(service)

    artifacts = {"enum": list(service.manifest.artifacts)}

    @app.post(
        SEGMENT, tags=["model"], summary="Segment an image", responses=RESPONSES, response_class=Response,
        openapi_extra={"requestBody": {"required": True, "content": BODY}},
    )  # fmt: skip
    async def segment(
        request: Request,
        format: Annotated[Format, Query(description=FORMATS)] = Format.MASK,
        artifact: Annotated[
            str | None,
            Query(description="one of /v1/model's; default: its default_artifact", json_schema_extra=artifacts),
        ] = None,
        opacity: Annotated[float, Query(ge=0, le=1, description="of an overlay's colours")] = 0.5,
        legend: Annotated[bool, Query(description="beside an overlay")] = True,
    ) -> Response:  # fmt: skip
        gzip = _accepts_gzip(request.headers.get("accept-encoding", ""))
        options = AnswerOptions(format, service.check(artifact), opacity, legend, gzip)
        try:
            async with asyncio.timeout(service.limits.timeout):
                data = await read_upload(request, service.limits.max_bytes)
        except TimeoutError as err:
            raise Refusal(408, f"no whole image within {service.limits.timeout:g} s", "Try again.") from err
        found, milliseconds, answer = await service.segment(data, options)
        metrics.segmented(found, milliseconds)
        height, width = found.mask.shape
        headers = {
            # https://www.w3.org/TR/server-timing/; browsers draw it.
            "Server-Timing": ", ".join(f"{stage};dur={value:.2f}" for stage, value in milliseconds.items()),
            "X-Artifact": found.artifact,
            "X-Mask-Width": str(width),
            "X-Mask-Height": str(height),
            "Cache-Control": "no-store",
        }
        return Response(answer.body, media_type=answer.media_type, headers=SAFE | headers | answer.headers)


def _accepts_gzip(accepted: str) -> bool:
    """Whether Accept-Encoding names gzip, and not with the weight 0, which forbids it (RFC 9110, 12.4.2 and 12.5.3)."""
    for part in accepted.lower().split(","):
        name, _, weight = part.partition(";")
        if name.strip() == "gzip":
            return re.fullmatch(r"\s*q=0(\.0*)?\s*", weight) is None
    return False


def _add_states(app: "FastAPI", service: Service, metrics: Metrics, admission: Admission) -> None:
    from fastapi.responses import Response

    @app.get("/health", tags=["state"], summary="The process lives")
    async def health() -> State:
        return State("alive")

    unready: dict[int | str, dict[str, Any]] = {503: {"model": Failure, "description": "It takes no images now."}}

    @app.get("/ready", tags=["state"], summary="It takes images: one was segmented just now", responses=unready)
    async def ready() -> State:
        if admission.draining:
            raise Refusal(503, "the server is shutting down", "Ask another one.")
        await service.prove()
        return State("ready")

    @app.get("/metrics", tags=["state"], summary="Figures for Prometheus", response_class=Response)
    async def figures() -> Response:
        body, media_type = metrics.exposition()
        return Response(body, media_type=media_type)


def _add_page(app: "FastAPI") -> None:
    from fastapi.responses import Response

    html, headers = load_page()
    image = SAMPLE.read_bytes()

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return Response(html, media_type="text/html", headers=SAFE | headers)

    @app.get("/sample.jpg", include_in_schema=False)
    async def sample() -> Response:
        return Response(image, media_type="image/jpeg", headers=SAFE)
