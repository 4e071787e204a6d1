"""The HTTP API and the page.

FastAPI is imported where it is used, so annotations must be evaluated there: no ``from __future__`` in this file.
"""

import asyncio
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from denseport.runtime.errors import MachineError
from denseport.runtime.serving.http.admission import Admission
from denseport.runtime.serving.http.answers import AnswerOptions, pack
from denseport.runtime.serving.http.limits import Limits, Refusal
from denseport.runtime.serving.http.metrics import Metrics
from denseport.runtime.serving.http.openapi import Endpoint, batch_endpoint, image_endpoint
from denseport.runtime.serving.http.page import SAMPLE, load_page, load_reference
from denseport.runtime.serving.http.schema import Failure, ModelInfo, State, describe
from denseport.runtime.serving.http.service import Service
from denseport.runtime.serving.http.upload import PARAMETERS, check_names, read_image, read_images
from denseport.runtime.system.machine import install_command

if TYPE_CHECKING:
    from fastapi import FastAPI, Request
    from fastapi.responses import Response

__all__ = ["create_app"]

T = TypeVar("T")
Take = Callable[["Request", Service, Metrics, AnswerOptions], Awaitable["Response"]]  # of `_one` and `_several`

LEGEND = True  # beside an overlay, unless a request says otherwise
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
    one, several = image_endpoint(service.manifest.task), batch_endpoint(service.manifest.task)
    admission = Admission(app, (one.path, several.path), service.limits, metrics.answered)
    _add_errors(app)
    _add_model(app, service)
    _add_images(app, service, metrics, one, _one)
    _add_images(app, service, metrics, several, _several)
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


def _add_images(app: "FastAPI", service: Service, metrics: Metrics, endpoint: Endpoint, answer: Take) -> None:
    """A path that takes images; ``answer`` reads and answers its requests."""
    from fastapi import Query, Request
    from fastapi.responses import Response

    usual, *_ = service.answers.formats
    artifacts = {"enum": list(service.manifest.artifacts)}
    Format = Annotated[endpoint.formats, Query(description=endpoint.formats_text)]  # type: ignore[name-defined]
    Artifact = Annotated[
        str | None,
        Query(description="one of /v1/model's; default: its default_artifact", json_schema_extra=artifacts),
    ]
    Opacity = Annotated[float, Query(ge=0, le=1, description="of an overlay's colours, with format=overlay")]
    Legend = Annotated[bool, Query(description="beside an overlay, with format=overlay")]

    @app.post(
        endpoint.path,
        name=endpoint.path.rpartition("/")[2],
        tags=["model"],
        summary=endpoint.summary,
        description=endpoint.description,
        response_class=Response,
        responses=endpoint.responses,
        openapi_extra={"requestBody": endpoint.body},
    )
    async def images(
        request: Request,
        format: Format = usual,
        artifact: Artifact = None,
        opacity: Opacity = service.answers.opacity,
        legend: Legend = LEGEND,
    ) -> Response:
        asked = service.answers.formats(format)
        options = _options(request, service, service.check(artifact), asked, opacity, legend)
        return await answer(request, service, metrics, options)


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
    request: "Request", service: Service, artifact: str, format: StrEnum, opacity: float, legend: bool
) -> AnswerOptions:
    """What a request asks for. Refuses what would change nothing, but for defaults, which generated clients send."""
    check_names(request.query_params, PARAMETERS)
    for name, changed in (("opacity", opacity != service.answers.opacity), ("legend", legend != LEGEND)):
        if changed and format != "overlay":
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
