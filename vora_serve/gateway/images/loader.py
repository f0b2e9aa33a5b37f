"""All images of one request: counted, fetched once each, normalised off the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from vora_serve.errors import APIError, ImageRequestError
from vora_serve.gateway.images.cache import ImageCache
from vora_serve.gateway.images.data_url import decode_data_url, encode_data_url
from vora_serve.gateway.images.decode import DecodeLimits, NormalisedImage, inspect, normalise
from vora_serve.gateway.images.fetch import ImageFetcher
from vora_serve.gateway.images.resolver import Resolver, SystemResolver
from vora_serve.gateway.images.urls import ImageURL
from vora_serve.gateway.memory import Share
from vora_serve.gateway.semaphore import WeightedSemaphore
from vora_serve.gateway.settings import ImageSettings

T = TypeVar("T")


@dataclass(frozen=True)
class ImageRef:
    """An image as a request names it."""

    url: str
    detail: str = "auto"
    param: str = ""


@dataclass
class LoadedImages:
    """A request's images as ``data:`` URLs, in the request's order, and what they cost."""

    urls: list[str] = field(default_factory=list)
    bytes: int = 0
    pixels: int = 0
    fetch_s: float = 0.0
    decode_s: float = 0.0


class ImageLoader:
    """Turns the images that a request names into clean ``data:`` URLs.

    Args:
        settings: The limits.
        resolver: Name resolution; the operating system's where absent.
    """

    def __init__(self, settings: ImageSettings, resolver: Resolver | None = None) -> None:
        self._settings = settings
        self._fetcher = ImageFetcher(settings, resolver or SystemResolver())
        self._threads = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")
        self._limits = DecodeLimits(
            settings.max_pixels, settings.min_side_pixels, settings.max_aspect_ratio
        )
        self._pixels = WeightedSemaphore(settings.decode_memory_pixels)
        cache = settings.cache
        self._cache = ImageCache(cache.max_bytes, cache.ttl_s) if cache.enabled else None

    def close(self) -> None:
        """Stop the decoding threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def check(self, refs: Sequence[ImageRef]) -> None:
        """Everything that can be refused before a byte is fetched or decoded.

        Raises:
            ImageRequestError
        """
        if len(refs) > self._settings.max_count:
            raise ImageRequestError(
                f"The request has {len(refs)} images; "
                f"at most {self._settings.max_count} are allowed.",
                code="too_many_images",
            )
        for ref in refs:
            try:
                if ref.url[:5].lower() == "data:":
                    if "data" not in self._settings.schemes:
                        raise ImageRequestError("Images as data URLs are not taken here.")
                else:
                    self._fetcher.parse(ref.url)
            except ImageRequestError as error:
                error.param = error.param or ref.param
                raise

    async def load(self, refs: Sequence[ImageRef], share: Share) -> LoadedImages:
        """Fetch, check and normalise; identical images once.

        Args:
            refs: The images.
            share: What the request holds of the process's memory: files are counted in as they
                arrive, and data URLs for as long as the share lasts.

        Raises:
            ImageRequestError
            RateLimitError: all requests together hold too much.
        """
        self.check(refs)
        result = LoadedImages()
        distinct: dict[tuple[str, int | None], ImageRef] = {}
        for ref in refs:
            distinct.setdefault((ref.url, self._budget(ref)), ref)
        gate = asyncio.Semaphore(self._settings.max_concurrent_fetches_per_request)
        try:
            async with (
                asyncio.timeout(self._settings.total_timeout_s),
                asyncio.TaskGroup() as group,
            ):
                tasks = {
                    key: group.create_task(self._one(ref, key[1], gate, result, share))
                    for key, ref in distinct.items()
                }
        except* APIError as errors:
            # The first in the request's order would need all to end; the first to fail is enough.
            raise _first(errors) from None
        except* TimeoutError:
            raise ImageRequestError(
                "The request's images could not be fetched within "
                f"{self._settings.total_timeout_s:g} s.",
                code="image_fetch_timeout",
            ) from None
        loaded = {key: task.result() for key, task in tasks.items()}
        for ref in refs:
            url, pixels = loaded[(ref.url, self._budget(ref))]
            result.urls.append(url)
            result.pixels += pixels
        if result.pixels > self._settings.max_total_pixels:
            raise ImageRequestError(
                f"The request's images exceed {self._settings.max_total_pixels} pixels together.",
                code="image_too_large",
            )
        return result

    def _budget(self, ref: ImageRef) -> int | None:
        limits: Mapping[Any, int] = self._settings.detail_pixels
        return limits.get(ref.detail)

    async def _one(
        self,
        ref: ImageRef,
        budget: int | None,
        gate: asyncio.Semaphore,
        result: LoadedImages,
        share: Share,
    ) -> tuple[str, int]:
        try:
            async with gate:
                started = time.perf_counter()
                content, strict = await self._content(ref, share)
                fetched = time.perf_counter()
            result.fetch_s = max(result.fetch_s, fetched - started)
            result.bytes += len(content)
            if result.bytes > self._settings.max_total_bytes:
                raise ImageRequestError(
                    f"The request's images exceed {self._settings.max_total_bytes} bytes together.",
                    code="image_too_large",
                )
            image = await self._decode(content, budget)
            result.decode_s += time.perf_counter() - fetched
        except ImageRequestError as error:
            error.param = error.param or ref.param
            raise
        share.shrink(len(content))
        written = f"data:{image.media_type};base64,"
        if strict and image.content is content and ref.url.startswith(written):
            return ref.url, image.width * image.height  # counted with the request's body
        share.grow(len(written) + 4 * -(-len(image.content) // 3))
        url = await self._in_thread(lambda: encode_data_url(image.content, image.media_type))
        return url, image.width * image.height

    async def _decode(self, content: bytes, budget: int | None) -> NormalisedImage:
        limits = self._limits
        _, width, height = await self._in_thread(lambda: inspect(content, limits))
        taken = min(width * height, self._pixels.capacity)  # a larger image is decoded alone
        await self._pixels.acquire(taken)
        work = asyncio.get_running_loop().run_in_executor(
            self._threads,
            lambda: normalise(
                content, limits, passthrough=self._settings.passthrough, budget=budget
            ),
        )
        # Shielded: a thread cannot be stopped, and its pixels stay taken until it ends.
        work.add_done_callback(lambda done: self._decoded(done, taken))
        return await asyncio.shield(work)

    def _decoded(self, done: asyncio.Future[NormalisedImage], taken: int) -> None:
        self._pixels.release(taken)
        if not done.cancelled():
            done.exception()  # retrieved, whether or not somebody still waits

    async def _in_thread(self, step: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, step)

    async def _content(self, ref: ImageRef, share: Share) -> tuple[bytes, bool]:
        """The file, counted in; and whether its data URL may be passed on as it is."""
        limit = self._settings.max_bytes
        if ref.url[:5].lower() == "data:":
            if len(ref.url) < 65536:
                content, strict = decode_data_url(ref.url, limit)
            else:
                content, strict = await self._in_thread(lambda: decode_data_url(ref.url, limit))
            share.grow(len(content))
            return content, strict
        url = self._fetcher.parse(ref.url)
        return await self._fetch(url, limit, share), False

    async def _fetch(self, url: ImageURL, limit: int, share: Share) -> bytes:
        cache, key = self._cache, str(url)
        entry = cache.get(key) if cache is not None else None
        if cache is not None and entry is not None and cache.fresh(entry):
            share.grow(len(entry.content))
            return entry.content
        etag = entry.etag if entry is not None else None
        modified = entry.last_modified if entry is not None else None
        fetched = await self._fetcher.fetch(url, limit, share.grow, etag, modified)
        if fetched.content is None:
            assert cache is not None
            assert entry is not None
            cache.renew(entry)
            share.grow(len(entry.content))
            return entry.content
        if cache is not None:
            if fetched.cacheable:
                cache.put(key, fetched.content, fetched.etag, fetched.last_modified)
            else:
                cache.drop(key)
        return fetched.content


def _first(errors: BaseExceptionGroup[APIError]) -> APIError:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, APIError)
    return error
