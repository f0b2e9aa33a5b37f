"""The files of one request, PDF above all: found, checked, and turned into images."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from vora_core.errors import (
    APIError,
    DocumentRequestError,
    ImageRequestError,
    ImageTooLargeError,
    NotFoundError,
    RequestTooLargeError,
)
from vora_core.image_files import sniff_format
from vora_serve.documents import sandbox
from vora_serve.gateway.images.cache import PreparedImages
from vora_serve.gateway.images.data_url import decode_data_url, too_many_bytes
from vora_serve.gateway.images.fetch import ImageFetcher
from vora_serve.gateway.images.pages import PageRenderer
from vora_serve.gateway.memory import Share
from vora_serve.gateway.settings import DocumentSettings

#: Reads one of a tenant's uploaded files by its id: at most so many bytes and one more.
StoredFiles = Callable[[str, str, int], Awaitable[bytes]]

_HEAD_BYTES = 1024  # PDF readers look for a file's mark so far


@dataclass(eq=False)
class DocumentRef:
    """A file as a request names it, in one of three ways.

    Attributes:
        part: The request's own part, which its pages replace.
        param: Where the request has it.
        data: A ``data:`` URL, or base64 alone.
        url: An http or https URL.
        file_id: Of a file that was uploaded.
        position: How many of the request's images come before it.
        detail: As of an image, for each of its pages.
        bounds: Least and most pixels, for each of its pages.
    """

    part: dict[str, Any]
    param: str
    data: str | None = None
    url: str | None = None
    file_id: str | None = None
    position: int = 0
    detail: str = "auto"
    bounds: tuple[int | None, int | None] = (None, None)


@dataclass
class RenderedFiles:
    """What became of a request's files: images of each, and what that cost."""

    pages: list[Sequence[bytes]] = field(default_factory=list)
    fetch_s: float = 0.0
    render_s: float = 0.0


def _about_a_file(error: APIError) -> APIError:
    """The error of a step that images go through too, about a file."""
    message = error.message.replace("An image", "A file").replace("image", "file")
    message = message.replace("files.max_bytes", "documents.max_bytes")
    if isinstance(error, RequestTooLargeError):
        return RequestTooLargeError(message, code="file_too_large")
    code = error.code.replace("image", "file") if error.code else None
    return DocumentRequestError(message, code=code)


class DocumentLoader:
    """Turns the files that a request names into images.

    Args:
        settings: The limits.
        fetcher: For files by URL.
        max_images: Of a request, pages included.

    Attributes:
        stored: Reads files that were uploaded, where that is possible.
    """

    def __init__(self, settings: DocumentSettings, fetcher: ImageFetcher, max_images: int) -> None:
        self._settings = settings
        self._fetcher = fetcher
        self._max_images = max_images
        self._renderer = PageRenderer(settings)
        self._known: PreparedImages[tuple[str, bytes], Sequence[bytes]] = PreparedImages(
            settings.cache_bytes
        )

        self.stored: StoredFiles | None = None

    def check(self, refs: Sequence[DocumentRef]) -> None:
        """Everything that can be refused before a byte is fetched or rendered.

        Raises:
            DocumentRequestError: files are not taken here, are too many, or a URL is refused.
        """
        if not refs:
            return
        if not self._settings.enabled:
            raise DocumentRequestError(
                "Files are not taken here.", param=refs[0].param, code="unsupported_file"
            )
        if len(refs) > self._settings.max_count:
            raise DocumentRequestError(
                f"The request has {len(refs)} files; "
                f"at most {self._settings.max_count} are allowed.",
                code="too_many_files",
            )
        for ref in refs:
            if ref.file_id is not None and self.stored is None:
                raise DocumentRequestError(
                    "Files by id are off here; send the file's data.",
                    param=ref.param,
                    code="unsupported_file",
                )
            if ref.url is not None:
                try:
                    self._fetcher.parse(ref.url)
                except ImageRequestError as error:
                    raise _with_param(_about_a_file(error), ref) from None

    async def load(
        self, refs: Sequence[DocumentRef], images: int, share: Share, owner: str, tenant: str
    ) -> RenderedFiles:
        """Fetch and render, one file after the other.

        Args:
            refs: The files.
            images: How many images the request has beside them.
            share: What the request holds of the process's memory: the pages stay counted in.
            owner: Whose rendered pages may be used again.
            tenant: Whose uploaded files these may be.

        Raises:
            DocumentRequestError, RequestTooLargeError, RateLimitError
            NotFoundError: the tenant has no such file.
        """
        result = RenderedFiles()
        left = self._max_images - images
        for ref in refs:
            try:
                content = await self._timed_content(ref, share, tenant, result)
                pages = await self._pages(content, left, share, owner, result)
            except (ImageRequestError, ImageTooLargeError) as error:
                raise _with_param(_about_a_file(error), ref) from None
            except NotFoundError as error:
                error.param = ref.param
                raise
            except (DocumentRequestError, RequestTooLargeError) as error:
                raise _with_param(error, ref) from None
            left -= len(pages)
            result.pages.append(pages)
        return result

    async def _timed_content(
        self, ref: DocumentRef, share: Share, tenant: str, result: RenderedFiles
    ) -> bytes:
        began = time.perf_counter()
        content = await self._content(ref, share, tenant)
        result.fetch_s += time.perf_counter() - began
        return content

    async def _pages(
        self, content: bytes, left: int, share: Share, owner: str, result: RenderedFiles
    ) -> Sequence[bytes]:
        began = time.perf_counter()
        if b"%PDF-" not in content[:_HEAD_BYTES]:
            self._require_image(content)
            return [content]
        self._require_renderer()
        most = min(self._settings.max_pages, left)
        digest = await asyncio.to_thread(lambda: hashlib.sha256(content).digest())
        pages = self._known.get((owner, digest))
        if pages is None:
            pages = await self._renderer.render(content, most, share.grow, owner)
            self._known.put((owner, digest), pages, sum(map(len, pages)))
        elif len(pages) > most:
            raise DocumentRequestError(
                f"A PDF file has {len(pages)} pages; at most {most} are allowed.",
                code="too_many_pages",
            )
        else:
            share.grow(sum(map(len, pages)))
        share.shrink(len(content))
        result.render_s += time.perf_counter() - began
        return pages

    async def _content(self, ref: DocumentRef, share: Share, tenant: str) -> bytes:
        """The file, counted in."""
        limit = self._settings.max_bytes
        if ref.file_id is not None and self.stored is not None:
            content = await self.stored(tenant, ref.file_id, limit)
            if len(content) > limit:
                raise too_many_bytes(limit)
            share.grow(len(content))
            return content
        if ref.url is not None:
            fetched = await self._fetcher.fetch(self._fetcher.parse(ref.url), limit, share.grow)
            assert fetched.content is not None  # without validators, no host answers 304
            return fetched.content
        data = ref.data or ""
        url = data if data[:5].lower() == "data:" else f"data:;base64,{data}"
        content, _ = await asyncio.to_thread(decode_data_url, url, limit)
        share.grow(len(content))
        return content

    @staticmethod
    def _require_image(content: bytes) -> None:
        try:
            sniff_format(content)
        except ImageRequestError:
            raise DocumentRequestError(
                "A file is neither a PDF nor an image; other files are not supported.",
                code="unsupported_file",
            ) from None

    @staticmethod
    def _require_renderer() -> None:
        if not sandbox.available():
            raise DocumentRequestError(
                "PDF files are not rendered on this server's machine; send images of their pages.",
                code="unsupported_file",
            )
        if find_spec("pypdfium2") is None:
            raise DocumentRequestError(
                "PDF files are not rendered here: the server lacks the extra vora-serve[pdf]; "
                "send images of their pages.",
                code="unsupported_file",
            )


def _with_param(error: APIError, ref: DocumentRef) -> APIError:
    error.param = error.param or ref.param
    return error
