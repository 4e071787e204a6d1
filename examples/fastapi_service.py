"""A service of your own with FastAPI: an image is uploaded; shares, a mask, polygons or an overlay come back.

    pip install '.[serve,onnxruntime]'
    BUNDLE=out/dpt-b uvicorn --app-dir examples fastapi_service:app --port 8200
    curl -F image=@street.jpg http://127.0.0.1:8200/shares

One segmenter serves all requests and never holds up the event loop. ``denseport serve`` is a finished service, which
also limits the size of images, the queue and the time.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import cv2
from fastapi import FastAPI, Request, Response, UploadFile
from fastapi.responses import JSONResponse

from denseport.runtime import DenseportError, Segmentation, Segmenter


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    with Segmenter(os.environ["BUNDLE"]) as segment:
        await asyncio.to_thread(segment.warmup, [(480, 640)])
        app.state.segment = segment
        yield


app = FastAPI(title="Segmentation", lifespan=lifespan)


@app.exception_handler(DenseportError)
async def refused(request: Request, err: DenseportError) -> JSONResponse:
    """An upload that is not an image, for example."""
    return JSONResponse({"error": err.message, "remedy": err.remedy}, 422)


async def segmented(request: Request, upload: UploadFile) -> Segmentation:
    """Two images are worked on at a time, the others wait; the image of a client that has gone is not begun."""
    result: Segmentation = await request.app.state.segment.submit(await upload.read())
    return result


@app.post("/shares")
async def shares(request: Request, image: UploadFile) -> dict[str, float]:
    return (await segmented(request, image)).shares()


@app.post("/mask")
async def mask(request: Request, image: UploadFile) -> Response:
    return Response((await segmented(request, image)).to_png(), media_type="image/png")


@app.post("/polygons")
async def polygons(request: Request, image: UploadFile) -> dict[str, Any]:
    result = await segmented(request, image)
    return await asyncio.to_thread(result.to_geojson, simplify=1.0)  # long outlines take a while


@app.post("/overlay")
async def overlay(request: Request, image: UploadFile) -> Response:
    painted = (await segmented(request, image)).overlay(opacity=0.6)
    return Response(cv2.imencode(".jpg", painted)[1].tobytes(), media_type="image/jpeg")
