"""Runs the program that renders PDF files, one process for each file, and reads what it sends.

What comes back is believed no more than the file was: pages go through the checks of any image.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import vora_serve
from vora_core.errors import APIError, DocumentRequestError, RequestTooLargeError
from vora_serve.gateway.semaphore import WeightedSemaphore
from vora_serve.gateway.settings import DocumentSettings

logger = logging.getLogger("vora_serve.gateway.documents")

_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from vora_serve.documents.render import main; main()"
)
_ROOT = str(Path(vora_serve.__file__).resolve().parents[1])
_BROKEN = "A PDF file is broken, or cannot be rendered within the limits."


class PageRenderer:
    """Turns PDF files into images of their pages.

    Args:
        settings: The limits.
    """

    def __init__(self, settings: DocumentSettings) -> None:
        self._settings = settings
        self._processes = WeightedSemaphore(settings.max_concurrent)

    async def render(
        self, content: bytes, max_pages: int, count: Callable[[int], None], owner: str
    ) -> list[bytes]:
        """The pages of a file, in order, as PNG files.

        Args:
            content: The file.
            max_pages: More are refused.
            count: Told of the bytes of each page before it is read; what it raises ends the work.
            owner: Whose file it is: owners take turns.

        Raises:
            DocumentRequestError: encrypted, broken, too many pages, or too slow to render.
            RequestTooLargeError: it needs too much memory.
        """
        timeout_s = self._settings.timeout_s
        async with self._processes.hold(caller=owner):
            try:
                async with asyncio.timeout(timeout_s):
                    return await self._run(content, max_pages, count)
            except TimeoutError:
                raise DocumentRequestError(
                    "A PDF file could not be rendered within the limit documents.timeout_s, "
                    f"{timeout_s:g} s.",
                    code="file_timeout",
                ) from None

    async def _run(
        self, content: bytes, max_pages: int, count: Callable[[int], None]
    ) -> list[bytes]:
        limits = {
            "max_pages": max_pages,
            "dpi": self._settings.dpi,
            "max_pixels": self._settings.max_page_pixels,
            "max_memory_bytes": self._settings.max_memory_bytes,
            "cpu_s": math.ceil(self._settings.timeout_s) + 1,
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-c", _PROGRAM, _ROOT, json.dumps(limits)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={},
            cwd="/",
        )
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(ConnectionError):  # it ended: its output says why
                process.stdin.write(content)
                await process.stdin.drain()
                process.stdin.close()
            pages = await self._read(process.stdout, max_pages, count)
            if pages is None:
                raise await self._explain(process)
            return pages
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await asyncio.shield(process.wait())

    async def _read(
        self, output: asyncio.StreamReader, max_pages: int, count: Callable[[int], None]
    ) -> list[bytes] | None:
        """The pages; None where the program ended too early, or said what it never says."""
        most = 4 * self._settings.max_page_pixels + 65536
        pages: list[bytes] = []
        while True:
            try:
                head = await output.readexactly(5)
                kind, (length,) = head[:1], struct.unpack(">I", head[1:])
                if kind == b"e":
                    return pages
                if length > most or (kind == b"p" and len(pages) >= max_pages):
                    return None
                if kind == b"p":
                    count(length)
                    pages.append(await output.readexactly(length))
                elif kind == b"r":
                    raise self._refusal(await output.readexactly(length), max_pages)
                else:
                    return None
            except asyncio.IncompleteReadError:
                return None

    def _refusal(self, payload: bytes, max_pages: int) -> APIError:
        try:
            failure = json.loads(payload)
            code = failure["code"]
            if code == "too_many_pages":
                return DocumentRequestError(
                    f"A PDF file has {int(failure['pages'])} pages; "
                    f"at most {max_pages} are allowed.",
                    code="too_many_pages",
                )
        except (ValueError, KeyError, TypeError):
            return DocumentRequestError(_BROKEN)
        if code == "encrypted":
            return DocumentRequestError(
                "A PDF file is encrypted; send it without its password.", code="encrypted_file"
            )
        if code == "empty":
            return DocumentRequestError("A PDF file has no pages.")
        if code == "too_much_memory":
            return RequestTooLargeError(
                "A PDF file needs more memory than the limit documents.max_memory_bytes, "
                f"{self._settings.max_memory_bytes} bytes, to be rendered.",
                code="file_too_large",
            )
        return DocumentRequestError(_BROKEN)

    async def _explain(self, process: asyncio.subprocess.Process) -> DocumentRequestError:
        """Why a process ended without an answer: a fault in the file, or one in PDFium."""
        status = await process.wait()
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        logger.warning("the PDF renderer ended with %s", how)
        return DocumentRequestError(_BROKEN)
