"""A file by HTTPS: resumed where it was cut off, bounded in size, and kept only if it has the right hash."""

from __future__ import annotations

import errno
import os
import shutil
import time
from contextlib import ExitStack
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from denseport.export.errors import CheckpointError
from denseport.runtime.errors import ServerError
from denseport.runtime.system.files import locked, sha256_of, writing
from denseport.runtime.system.progress import Progress, StepCallback

__all__ = ["LIMIT", "download", "has_hash"]

LIMIT = 8 * 10**9  # bytes; the largest published file has about 1.4 * 10**9
CHUNK = 2**20  # bytes
SILENCE = 30.0  # seconds in which a server must send something
PAUSES = (1.0, 5.0)  # seconds before each new try, once something came; a server that is not there is told at once
MB = 10**6
LOCAL = {"localhost", "127.0.0.1", "::1"}  # this machine, which is asked without encryption too
NOTHING_MORE = 416  # HTTP's "range not satisfiable": no byte comes after those that are here


def download(address: str, file: Path, sha256_start: str, progress: Progress) -> None:
    """Fetch ``address`` to ``file``, unless it is there with the right hash; one process at a time, others wait.

    What was received of a file that was cut off stays beside it as ``.part``, and the next call goes on there.

    Args:
        sha256_start: how the hash of the file begins, hex digits.

    Raises:
        ServerError: no network, a server that refuses, falls silent or sends too much, or an address that is not safe.
        CheckpointError: the file has another hash; it is deleted.
        OutputError: no room, or no right to write there.
    """
    _check_address(address)
    part = file.with_name(f"{file.name}.part")
    with _alone(file, progress):
        if has_hash(file, sha256_start):
            return
        resumed = part.exists()
        _receive_all(address, part, progress)
        if resumed and not has_hash(part, sha256_start):
            progress.say(f"the beginning of {file.name}, from before, does not fit: it is fetched from the start")
            part.unlink()
            _receive_all(address, part, progress)
        if not has_hash(part, sha256_start):
            found = sha256_of(part)[: len(sha256_start)]
            part.unlink()
            raise CheckpointError(
                f"{address}: the file that came has a SHA-256 that begins with {found}, published is {sha256_start}",
                "Nothing of it was read, and it was deleted. Try again later, or fetch the file from elsewhere.",
            )
        with writing(file):
            part.replace(file)


def has_hash(file: Path, sha256_start: str) -> bool:
    """Whether there is such a file, and its hash begins so."""
    return file.exists() and sha256_of(file).startswith(sha256_start)


def _alone(file: Path, progress: Progress) -> ExitStack:
    """Holds the lock of a file; says so where another process has it."""
    lock = file.with_name(f"{file.name}.lock")
    stack = ExitStack()
    with writing(file):
        try:
            stack.enter_context(locked(lock, wait=False))
        except TimeoutError:
            progress.say(f"another process fetches {file.name}: waiting for it")
            stack.enter_context(locked(lock))
    return stack


def _receive_all(address: str, part: Path, progress: Progress) -> None:
    """Receive the file, going on where it was cut off."""
    pauses: list[float] = []
    with progress.phase(f"fetching {part.stem}, MB") as step:
        while True:
            before = _size(part)
            problem = _receive(address, part, step)
            if problem is None:
                return
            if _size(part) > before:
                pauses = [*PAUSES]
            if not pauses:
                kept = f"; {_size(part) / MB:,.1f} MB are here, and the next try goes on there" if _size(part) else ""
                raise ServerError(f"{address}: {problem}{kept}", "Check the network, and try again.")
            time.sleep(pauses.pop(0))


def _receive(address: str, part: Path, step: StepCallback) -> str | None:
    """Receive what is missing of a file; None once nothing is, else what went wrong, in words."""
    have = _size(part)
    # A compressed answer would be another file's bytes.
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        with build_opener(_SafeRedirects).open(Request(address, headers=headers), timeout=SILENCE) as answer:
            start, total = _promised(answer, have)
            if total is not None:
                _check_room(address, part, total, total - start)
            return _save(answer, address, part, (start, total), step)
    except HTTPError as err:
        err.close()
        return None if err.code == NOTHING_MORE and have else f"the server answers {err.code}"
    except TimeoutError:
        return f"the server sent nothing for {SILENCE:.0f} s"
    except (OSError, HTTPException) as err:
        reason = err.reason if isinstance(err, URLError) else err
        return f"cannot be reached, or was cut off: {reason}"


def _promised(answer: HTTPResponse, have: int) -> tuple[int, int | None]:
    """At which byte an answer begins, and how many the whole file has; None where it does not say."""
    length = answer.headers.get("Content-Length", "")
    start = have if answer.status == 206 else 0  # a server that knows no ranges sends everything again
    if start and not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        raise HTTPException("the server goes on at another byte than was asked for")
    return start, start + int(length) if length.isdecimal() else None


def _check_room(address: str, part: Path, total: int, coming: int) -> None:
    if total > LIMIT:
        raise _too_large(address)
    with writing(part):
        if shutil.disk_usage(part.parent).free < coming:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _save(
    answer: HTTPResponse, address: str, part: Path, span: tuple[int, int | None], step: StepCallback
) -> str | None:
    """Write an answer's bytes; what is wrong with their number, in words."""
    done, total = span
    with writing(part):
        file = part.open("r+b" if done else "wb")
    with file:
        file.seek(done)
        while chunk := answer.read(CHUNK):
            done += len(chunk)
            if done > LIMIT:
                raise _too_large(address)
            with writing(part):
                file.write(chunk)
            step(done // MB, max(done, total or 0) // MB)
        with writing(part):
            file.truncate()
    return None if total is None or done == total else f"cut off after {done / MB:,.1f} of {total / MB:,.1f} MB"


def _too_large(address: str) -> ServerError:
    what = f"{address}: the server sends more than {LIMIT / 1e9:.0f} GB, which no published file has"
    return ServerError(what, "Fetch the file from elsewhere.")


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _check_address(address: str) -> None:
    """Refuse what is neither HTTPS nor on this machine."""
    parts = urlsplit(address)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOCAL):
        raise ServerError(f"{address}: refused: not an https address", "Fetch the file from elsewhere.")


class _SafeRedirects(HTTPRedirectHandler):
    def redirect_request(self, req: Request, fp: Any, *answer: Any) -> Request | None:
        try:
            _check_address(answer[-1])
        except ServerError:
            fp.close()
            raise
        return super().redirect_request(req, fp, *answer)
