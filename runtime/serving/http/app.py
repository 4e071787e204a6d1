"""The HTTP API and the page.

FastAPI is imported where it is used, so annotations must be evaluated there: no ``from __future__`` in this file.
"""

import asyncio
import re
from collections import defaultdict
from collections.abc import Awaitable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from denseport.runtime.errors import MachineError
from denseport.runtime.serving.http.admission import Admission
from denseport.runtime.serving.http.answers import (
    DEPTH,
    DEPTH_FORMATS,
    AnswerOptions,
    BatchFormat,
    DepthBatchFormat,
    DepthFormat,
    Format,
    pack,
)
from denseport.runtime.serving.http.limits import Limits, Refusal
from denseport.runtime.serving.http.metrics import Metrics
from denseport.runtime.serving.http.openapi import (
    BATCH_BODY,
    BATCH_TEXT,
    DEPTH_BATCH_TEXT,
    FORMATS,
    RAW,
    SEGMENT_BODY,
    SEGMENT_TEXT,
    batch_responses,
    depth_batch_responses,
    depth_responses,
    segment_responses,
)
from denseport.runtime.serving.http.page import SAMPLE, load_page, load_reference
from denseport.runtime.serving.http.schema import Failure, ModelInfo, State, describe
from denseport.runtime.serving.http.service import Service
from denseport.runtime.serving.http.upload import BATCH, PARAMETERS, SEGMENT, check_names, read_image, read_images
from denseport.runtime.system.machine import install_command

if TYPE_CHECKING:
    from fastapi import FastAPI, Request
    from fastapi.responses import Response

__all__ = ["create_app"]

T = TypeVar("T")

OPACITY, LEGEND = 0.5, True  # of an overlay, unless a request says otherwise
SUMMARIES = {
    "segmentation": "Semantic segmentation: an image in, a mask out.",
    "depth": "Depth estimation: an image in, the depth of each pixel out.",
}
SAFE = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


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
        raise MachineError(f"{err.name} is not installed", install_command("serve")) from err
    app = FastAPI(
        title=f"Denseport: {service.manifest.name}",
        summary=SUMMARIES[service.manifest.task],
        version="1",
        docs_url=None,  # these load scripts from elsewhere; ours is added below
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,  # what generated clients call a request
        redirect_slashes=False,  # they would lead to whatever host the request names
    )
    # Made before admission is, whose count it shows.
    metrics = Metrics(service.manifest.name, lambda: admission.active)
    admission = Admission(app, (SEGMENT, BATCH, DEPTH), service.limits, metrics.answered)
    _add_errors(app)
    _add_model(app, service)
    add = _add_depths if service.manifest.task == "depth" else _add_images
    add(app, service, metrics)
    _add_states(app, service, metrics, admission)
    _add_pages(app, service.manifest.task)
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
        return JSONResponse({"error": found, "remedy": "See /docs."}, 422)

    @app.exception_handler(HTTPException)
    async def not_found(request: Request, err: HTTPException) -> JSONResponse:
        return JSONResponse({"error": err.detail, "remedy": "See /docs."}, err.status_code, err.headers)

    @app.exception_handler(Exception)
    async def broken(request: Request, err: Exception) -> JSONResponse:
        # Starlette raises it again after the answer, for the server to log.
        return JSONResponse({"error": "the server failed", "remedy": "See its log."}, 500)


def _add_model(app: "FastAPI", service: Service) -> None:
    from fastapi import Request

    @app.get("/v1/model", tags=["model"], summary="What is served, and what was measured on it")
    async def model(request: Request) -> ModelInfo:
        check_names(request.query_params, ())
        return describe(service)


def _add_images(app: "FastAPI", service: Service, metrics: Metrics) -> None:
    from fastapi import Query, Request
    from fastapi.responses import Response

    artifacts = {"enum": list(service.manifest.artifacts)}
    Artifact = Annotated[
        str | None,
        Query(description="one of /v1/model's; default: its default_artifact", json_schema_extra=artifacts),
    ]
    Opacity = Annotated[float, Query(ge=0, le=1, description="of an overlay's colours, with format=overlay")]
    Legend = Annotated[bool, Query(description="beside an overlay, with format=overlay")]

    @app.post(
        SEGMENT, tags=["model"], summary="Segment an image", description=SEGMENT_TEXT, response_class=Response,
        responses=segment_responses(), openapi_extra={"requestBody": SEGMENT_BODY},
    )  # fmt: skip
    async def segment(
        request: Request,
        format: Annotated[Format, Query(description=FORMATS + RAW)] = Format.MASK,
        artifact: Artifact = None,
        opacity: Opacity = OPACITY,
        legend: Legend = LEGEND,
    ) -> Response:
        options = _options(request, service.check(artifact), format, opacity, legend)
        return await _one(request, service, metrics, options)

    @app.post(
        BATCH, tags=["model"], summary="Segment several images", description=BATCH_TEXT, response_class=Response,
        responses=batch_responses(), openapi_extra={"requestBody": BATCH_BODY},
    )  # fmt: skip
    async def batch(
        request: Request,
        format: Annotated[BatchFormat, Query(description=FORMATS)] = "mask",
        artifact: Artifact = None,
        opacity: Opacity = OPACITY,
        legend: Legend = LEGEND,
    ) -> Response:
        options = _options(request, service.check(artifact), Format(format), opacity, legend)
        return await _several(request, service, metrics, options)


def _add_depths(app: "FastAPI", service: Service, metrics: Metrics) -> None:
    from fastapi import Query, Request
    from fastapi.responses import Response

    artifacts = {"enum": list(service.manifest.artifacts)}
    Artifact = Annotated[str | None, Query(description="default: /v1/model's", json_schema_extra=artifacts)]
    Opacity = Annotated[float, Query(ge=0, le=1, description="of an overlay's colours")]
    Legend = Annotated[bool, Query(description="beside an overlay")]

    @app.post(
        DEPTH, tags=["model"], summary="Estimate the depth of an image", response_class=Response,
        responses=depth_responses(), openapi_extra={"requestBody": SEGMENT_BODY},
    )  # fmt: skip
    async def depth(
        request: Request,
        format: Annotated[DepthFormat, Query(description=DEPTH_FORMATS)] = DepthFormat.PNG,
        artifact: Artifact = None,
        opacity: Opacity = 1.0,
        legend: Legend = LEGEND,
    ) -> Response:
        options = _options(request, service.check(artifact), format, opacity, legend, usual=1.0)
        return await _one(request, service, metrics, options)

    @app.post(
        BATCH, tags=["model"], summary="Estimate the depth of several images", description=DEPTH_BATCH_TEXT,
        response_class=Response, responses=depth_batch_responses(), openapi_extra={"requestBody": BATCH_BODY},
    )  # fmt: skip
    async def batch(
        request: Request,
        format: Annotated[DepthBatchFormat, Query(description=DEPTH_FORMATS)] = "png",
        artifact: Artifact = None,
        opacity: Opacity = 1.0,
        legend: Legend = LEGEND,
    ) -> Response:
        options = _options(request, service.check(artifact), DepthFormat(format), opacity, legend, usual=1.0)
        return await _several(request, service, metrics, options)


async def _one(request: "Request", service: Service, metrics: Metrics, options: AnswerOptions) -> "Response":
    """The answer to a request with one image."""
    from fastapi.responses import Response

    data = await _arrived(read_image(request, service.limits.max_bytes), service.limits)
    found, milliseconds, answer = await service.segment(data, options)
    metrics.segmented(found, milliseconds)
    headers = SAFE | _told(found.artifact, milliseconds) | service.answers.about(found) | answer.headers
    return Response(answer.body, media_type=answer.media_type, headers=headers)


async def _several(request: "Request", service: Service, metrics: Metrics, options: AnswerOptions) -> "Response":
    """The answer to a request with several images."""
    from fastapi.responses import Response

    limits = service.limits
    images = await _arrived(read_images(request, limits.max_bytes, limits.max_images), limits)
    answers, total = [], defaultdict[str, float](float)
    for found, milliseconds, answer in await service.segment_all(images, options, request.is_disconnected):
        metrics.segmented(found, milliseconds)
        answers.append(answer)
        for stage, value in milliseconds.items():
            total[stage] += value
    answer = await asyncio.to_thread(pack, answers)
    headers = SAFE | _told(options.artifact, total)
    return Response(answer.body, media_type=answer.media_type, headers=headers)


def _options(
    request: "Request", artifact: str, format: StrEnum, opacity: float, legend: bool, usual: float = OPACITY
) -> AnswerOptions:
    """What a request asks for. Refuses what would change nothing, but for defaults, which generated clients send."""
    check_names(request.query_params, PARAMETERS)
    for name, changed in (("opacity", opacity != usual), ("legend", legend != LEGEND)):
        if changed and format != Format.OVERLAY:
            raise Refusal(422, f"{name} means nothing with format={format}", "Leave it out, or ask for format=overlay.")
    return AnswerOptions(format, artifact, opacity, legend, _accepts_gzip(request.headers.get("accept-encoding", "")))


async def _arrived(upload: Awaitable[T], limits: Limits) -> T:
    """What was uploaded, in time."""
    try:
        async with asyncio.timeout(limits.timeout):
            return await upload
    except TimeoutError as err:
        raise Refusal(408, f"no whole image within {limits.timeout:g} s", "Try again.") from err


def _told(artifact: str, milliseconds: dict[str, float]) -> dict[str, str]:
    """Headers of every answer."""
    return {
        # https://www.w3.org/TR/server-timing/; browsers draw it.
        "Server-Timing": ", ".join(f"{stage};dur={value:.2f}" for stage, value in milliseconds.items()),
        "X-Artifact": artifact,
        "Cache-Control": "no-store",
    }


def _accepts_gzip(accepted: str) -> bool:
    """Whether Accept-Encoding names gzip, and not with the weight 0, which forbids it (RFC 9110, 12.4.2 and 12.5.3)."""
    for part in accepted.lower().split(","):
        name, _, weight = part.partition(";")
        if name.strip() == "gzip":
            return re.fullmatch(r"\s*q=0(\.0*)?\s*", weight) is None
    return False


def _add_states(app: "FastAPI", service: Service, metrics: Metrics, admission: Admission) -> None:
    from fastapi.responses import PlainTextResponse, Response

    @app.get("/health", tags=["state"], summary="The process lives")
    async def health() -> State:
        return State("alive")

    unready: dict[int | str, dict[str, Any]] = {503: {"model": Failure, "description": "It takes no images now."}}

    @app.get("/ready", tags=["state"], summary="It takes images: one went through just now", responses=unready)
    async def ready() -> State:
        if admission.draining:
            raise Refusal(503, "the server is shutting down", "Ask another one.")
        await service.prove()
        return State("ready")

    @app.get(
        "/metrics",
        tags=["state"],
        summary="Figures for Prometheus",
        operation_id="metrics",
        response_class=PlainTextResponse,
    )
    async def figures() -> Response:
        body, media_type = metrics.exposition()
        return Response(body, media_type=media_type)


def _add_pages(app: "FastAPI", task: str) -> None:
    """After all that is described on one of them."""
    from fastapi.responses import Response

    image = SAMPLE.read_bytes()

    def add(path: str, page: tuple[bytes, dict[str, str]]) -> None:
        @app.get(path, include_in_schema=False)
        async def show() -> Response:
            return Response(page[0], media_type="text/html", headers=SAFE | page[1])

    add("/", load_page(task))
    add("/docs", load_reference(app.openapi()))

    @app.get("/sample.jpg", include_in_schema=False)
    async def sample() -> Response:
        return Response(image, media_type="image/jpeg", headers=SAFE)
