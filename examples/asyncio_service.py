"""A small network service: an image's bytes in, its mask as PNG out. One segmenter, many clients, one event loop.

    python examples/asyncio_service.py BUNDLE --port 8100

A request is four bytes of length (big endian) and an encoded image; so is the answer. Length 0 tells of an error. For
HTTP, health and metrics see ``denseport serve``; this shows the embedding.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

import cv2

from denseport.runtime import DenseportError, Segmenter

LARGEST = 50_000_000  # bytes


async def serve(bundle: Path, port: int) -> None:
    with Segmenter(bundle) as segment:
        await asyncio.to_thread(segment.warmup, [(480, 640)])

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while (length := int.from_bytes(await reader.readexactly(4), "big")) <= LARGEST:
                    data = await reader.readexactly(length)
                    try:
                        mask = (await segment.submit(data)).mask  # given up when the client goes and we are cancelled
                        png = cv2.imencode(".png", mask)[1].tobytes()
                    except DenseportError:
                        png = b""
                    writer.write(len(png).to_bytes(4, "big") + png)
                    await writer.drain()
            except asyncio.IncompleteReadError:
                pass  # the client has gone
            finally:
                writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", port)
        print(f"{segment.description}: listening on port {server.sockets[0].getsockname()[1]}", flush=True)
        async with server:
            await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--port", type=int, default=8100, help="0: any that is free")
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.bundle, arguments.port))
