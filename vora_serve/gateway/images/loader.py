"""All images of one request: counted, fetched once each, prepared off the event loop."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from vora_core.errors import APIError, ImageRequestError, ImageTooLargeError
from vora_core.geometry import ImageSettings as Geometry
from vora_core.image_files import DecodeLimits, read_header
from vora_serve.gateway.images.cache import ImageCache, PreparedImages
from vora_serve.gateway.images.clean import CleanImage
from vora_serve.gateway.images.data_url import decode_data_url, encode_data_url
from vora_serve.gateway.images.fetch import ImageFetcher
from vora_serve.gateway.images.prepare import Target, bounded, prepare
from vora_serve.gateway.images.resolver import Resolver, SystemResolver
from vora_serve.gateway.images.urls import ImageURL
from vora_serve.gateway.memory import Share
from vora_serve.gateway.semaphore import WeightedSemaphore
from vora_serve.gateway.settings import ImageSettings

T = TypeVar("T")

#: Largest number of pixels for ``detail: low`` where the model's resolution is native and the
#: settings do not say: what OpenAI's models see of such an image.
_LOW_DETAIL_PIXELS = 512 * 512


@dataclass(frozen=True)
class ImageRef:
    """An image as a request names it; bounds in pixels where the request has them."""

    url: str
    """Empty for a page of a file, whose image is at hand."""
    detail: str = "auto"
    param: str = ""
    min_pixels: int | None = None
    max_pixels: int | None = None
    content: bytes | None = None
    """A page's image, which its request's share counts already."""


@dataclass
class LoadedImages:
    """A request's images as ``data:`` URLs, in the request's order, and what they cost."""

    urls: list[str] = field(default_factory=list)
    used: list[CleanImage] = field(default_factory=list)
    """What became of each image, without its content."""
    bytes: int = 0
    pixels: int = 0
    fetch_s: float = 0.0
    decode_s: float = 0.0
    owner: str = ""

    def summary(self) -> str:
        """Sizes and, where known, tokens: ``448x448=1024, 392x588=1176``."""
        return ", ".join(
            f"{image.width}x{image.height}" + ("" if image.tokens is None else f"={image.tokens}")
            for image in self.used
        )


class ImageLoader:
    """Turns the images that a request names into clean ``data:`` URLs.

    Args:
        settings: The limits.
        resolver: Name resolution; the operating system's where absent.
    """

    def __init__(self, settings: ImageSettings, resolver: Resolver | None = None) -> None:
        self._settings = settings
        self.fetcher = ImageFetcher(settings, resolver or SystemResolver())
        threads = settings.decode_threads or len(os.sched_getaffinity(0))
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._limits = DecodeLimits(
            settings.max_pixels, settings.min_side_pixels, settings.max_aspect_ratio
        )
        self._decoding = WeightedSemaphore(settings.decode_memory_bytes)
        self._known: PreparedImages[tuple[str, bytes, Target], tuple[str, CleanImage]] = (
            PreparedImages(settings.prepared_cache_bytes)
        )
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
                if ref.content is not None:
                    continue
                if ref.url[:5].lower() == "data:":
                    if "data" not in self._settings.schemes:
                        raise ImageRequestError("Images as data URLs are not taken here.")
                else:
                    self.fetcher.parse(ref.url)
            except ImageRequestError as error:
                error.param = error.param or ref.param
                raise

    async def load(
        self,
        refs: Sequence[ImageRef],
        share: Share,
        geometry: Geometry | None = None,
        owner: str = "",
    ) -> LoadedImages:
        """Fetch, check and prepare; identical images once.

        Args:
            refs: The images.
            share: What the request holds of the process's memory: files are counted in as they
                arrive, and data URLs for as long as the share lasts.
            geometry: The model's image settings, where its engines take pixels that are ready.
            owner: Whose images they are: what was prepared before is used again for the same one
                only, since the time that it takes reveals whether somebody sent it.

        Raises:
            ImageRequestError
            ImageTooLargeError: a limit that the message names.
            RateLimitError: all requests together hold too much.
        """
        self.check(refs)
        result = LoadedImages(owner=owner)
        several = len(refs) > 1  # a single one needs no hash of its megabytes
        wanted = [
            (ref.content or ref.url if several else b"", self._target(ref, geometry))
            for ref in refs
        ]
        distinct = dict(zip(wanted, refs, strict=True))
        gate = asyncio.Semaphore(self._settings.max_concurrent_fetches_per_request)
        deadline = asyncio.get_running_loop().time() + self._settings.total_timeout_s
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {
                    key: group.create_task(self._one(ref, key[1], gate, deadline, result, share))
                    for key, ref in distinct.items()
                }
        except* APIError as errors:
            # The first in the request's order would need all to end; the first to fail is enough.
            raise _first(errors) from None
        for key in wanted:
            url, image = tasks[key].result()
            result.urls.append(url)
            result.used.append(image)
        return result

    def _target(self, ref: ImageRef, geometry: Geometry | None) -> Target:
        """What an image is to become, by its own bounds and its detail."""
        limits: Mapping[Any, int] = self._settings.detail_pixels
        most = limits.get(ref.detail)
        if most is None and ref.detail == "low" and geometry is not None:
            most = _LOW_DETAIL_PIXELS
        if ref.max_pixels is not None:
            most = min(ref.max_pixels, most or ref.max_pixels)
        if geometry is None:
            return Target(max_pixels=most, passthrough=self._settings.passthrough)
        try:
            settings = bounded(geometry, ref.min_pixels, most)
        except ImageRequestError as error:
            error.param = error.param or ref.param
            raise
        return Target(settings, fast_decode=self._settings.fast_decode)

    async def _one(
        self,
        ref: ImageRef,
        target: Target,
        gate: asyncio.Semaphore,
        deadline: float,
        result: LoadedImages,
        share: Share,
    ) -> tuple[str, CleanImage]:
        try:
            async with gate:
                started = time.perf_counter()
                content, strict = await self._content(ref, share, deadline)
                fetched = time.perf_counter()
            result.fetch_s = max(result.fetch_s, fetched - started)
            result.bytes += len(content)
            if result.bytes > self._settings.max_total_bytes:
                raise ImageTooLargeError(
                    "The request's images together exceed the limit images.max_total_bytes, "
                    f"{self._settings.max_total_bytes} bytes."
                )
            url, image = await self._prepare(content, ref, target, strict, result, share)
            result.decode_s += time.perf_counter() - fetched
        except (ImageRequestError, ImageTooLargeError) as error:
            error.param = error.param or ref.param
            raise
        share.shrink(len(content))
        return url, image

    async def _prepare(
        self,
        content: bytes,
        ref: ImageRef,
        target: Target,
        strict: bool,
        result: LoadedImages,
        share: Share,
    ) -> tuple[str, CleanImage]:
        """The image as it is sent. What it will cost is counted before it is decoded."""
        limits = self._limits
        header = await self._in_thread(lambda: read_header(content, limits))
        result.pixels += header.pixels
        if result.pixels > self._settings.max_total_pixels:
            raise ImageTooLargeError(
                "The request's images together exceed the limit images.max_total_pixels, "
                f"{self._settings.max_total_pixels} pixels."
            )
        weight = target.decode_bytes(header)
        if weight > self._decoding.capacity:
            raise ImageTooLargeError(
                f"An image of {header.width}x{header.height} pixels takes {weight} bytes to decode "
                "and exceeds the limit images.decode_memory_bytes, "
                f"{self._decoding.capacity} bytes."
            )
        # SHA-256, which processors have instructions for: half the time that BLAKE2 takes.
        digest = await self._in_thread(lambda: hashlib.sha256(content).digest())
        key = (result.owner, digest, target)
        known = self._known.get(key)
        if known is not None:
            share.grow(len(known[0]))
            return known
        counted = _encoded_bytes(target.most_bytes(header, len(content)))
        share.grow(counted)
        await self._decoding.acquire(weight)

        def work() -> tuple[str, CleanImage]:
            image = prepare(content, header, target)
            if strict and image.content == content and ref.url.startswith(_head(image)):
                return ref.url, image.described()
            return encode_data_url(image.content, image.media_type), image.described()

        running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        # Shielded: a thread cannot be stopped, and its memory stays taken until it ends.
        running.add_done_callback(lambda done: self._prepared(done, weight))
        url, image = await asyncio.shield(running)
        self._known.put(key, (url, image), len(url))
        held = 0 if url is ref.url else len(url)  # the request's own is counted with its body
        if held > counted:
            share.grow(held - counted)
        else:
            share.shrink(counted - held)
        return url, image

    def _prepared(self, done: asyncio.Future[Any], weight: int) -> None:
        self._decoding.release(weight)
        if not done.cancelled():
            done.exception()  # retrieved, whether or not somebody still waits

    async def _in_thread(self, step: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, step)

    async def _content(self, ref: ImageRef, share: Share, deadline: float) -> tuple[bytes, bool]:
        """The file, counted in; and whether its data URL may be passed on as it is."""
        if ref.content is not None:
            return ref.content, False
        limit = self._settings.max_bytes
        if ref.url[:5].lower() == "data:":
            if len(ref.url) < 65536:
                content, strict = decode_data_url(ref.url, limit)
            else:
                content, strict = await self._in_thread(lambda: decode_data_url(ref.url, limit))
            share.grow(len(content))
            return content, strict
        url = self.fetcher.parse(ref.url)
        try:
            async with asyncio.timeout_at(deadline):
                return await self._fetch(url, limit, share), False
        except TimeoutError:
            raise ImageRequestError(
                "The request's images could not be fetched within "
                f"{self._settings.total_timeout_s:g} s.",
                code="image_fetch_timeout",
            ) from None

    async def _fetch(self, url: ImageURL, limit: int, share: Share) -> bytes:
        cache, key = self._cache, str(url)
        entry = cache.get(key) if cache is not None else None
        if cache is not None and entry is not None and cache.fresh(entry):
            share.grow(len(entry.content))
            return entry.content
        etag = entry.etag if entry is not None else None
        modified = entry.last_modified if entry is not None else None
        fetched = await self.fetcher.fetch(url, limit, share.grow, etag, modified)
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


def _head(image: CleanImage) -> str:
    return f"data:{image.media_type};base64,"


def _encoded_bytes(size: int) -> int:
    """Of a ``data:`` URL."""
    return 4 * -(-size // 3) + 64


def _first(errors: BaseExceptionGroup[APIError]) -> APIError:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, APIError)
    return error
