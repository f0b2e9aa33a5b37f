"""The settings of what comes with a request: images, and files whose pages become images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vora_serve.gateway.settings.types import Cidr, Port, PositiveInt, Seconds, Section


class ImageCacheSettings(Section):
    """Images by URL: kept with their validators, for at most the TTL."""

    enabled: bool = False
    max_bytes: PositiveInt = 64 * 2**20
    ttl_s: Seconds = 300.0


class ImageSettings(Section):
    """Which images are taken, from where, and how large."""

    fetch: bool = True
    """Whether http(s) URLs are fetched at all."""
    schemes: list[Literal["https", "http", "data"]] = ["https", "http", "data"]
    ports: list[Port] = [80, 443]
    private_ports: list[Port] | None = None
    """Ports inside ``allow_networks``; any where absent."""
    allow_networks: list[Cidr] = []
    """Private networks that may be fetched from; none by default."""
    deny_networks: list[Cidr] = []
    allow_hosts: list[str] | None = None
    """Where given, only these hosts (``example.org``, ``*.example.org``); an empty list: none."""
    deny_hosts: list[str] = []
    max_count: PositiveInt = 16
    max_bytes: PositiveInt = 20 * 2**20
    max_total_bytes: PositiveInt = 24 * 2**20
    max_pixels: PositiveInt = 52_000_000
    max_total_pixels: PositiveInt = 200_000_000
    min_side_pixels: PositiveInt = 2
    max_aspect_ratio: Annotated[float, Field(ge=1)] = 200.0
    max_url_chars: PositiveInt = 8192
    timeout_s: Seconds = 10.0
    """For one image: names, connection, redirects and body together."""
    total_timeout_s: Seconds = 30.0
    connect_timeout_s: Seconds = 4.0
    max_redirects: Annotated[int, Field(ge=0, le=10)] = 5
    allow_downgrade: bool = False
    """Whether an https URL may redirect to http."""
    max_concurrent_fetches: PositiveInt = 64
    max_concurrent_fetches_per_request: PositiveInt = 8
    decode_threads: Annotated[int, Field(ge=1, le=64)] | None = None
    """As many as there are cores where absent."""
    fast_decode: bool = False
    """Decode large JPEGs at a fraction of their size: faster, not quite the released pixels."""
    prepared_cache_bytes: Annotated[int, Field(ge=0)] = 64 * 2**20
    """Prepared images kept for their sender's next turns; 0: none."""
    decode_memory_bytes: PositiveInt = 256 * 2**20
    """Memory of the images that a worker decodes at one time; others wait. An image that takes more
    by itself is refused. A pixel takes 3 bytes of a JPEG, 4 of most PNGs, 6 to 9 of a progressive
    JPEG, 9 of HEIC, 10 of AVIF and 17 of WebP; 8 where a file must be written anew."""
    passthrough: bool = True
    """For engines that take no ready pixels: leave a plain file in the encoding that it came in."""
    user_agent: str = "vora-serve"
    proxy: Annotated[str, Field(pattern=r"^http://[^/]+/?$")] | None = None
    """An HTTP proxy to fetch through; it resolves names then."""
    detail_pixels: dict[Literal["low", "high", "auto", "original"], PositiveInt] = {}
    """Largest number of pixels by the caller's ``detail``. By default only ``low`` has one, 512 x
    512, and only for models of native resolution."""
    cache: ImageCacheSettings = ImageCacheSettings()


class DocumentSettings(Section):
    """PDF files in requests, whose pages become images; needs the extra ``vora-serve[pdf]``.

    The pages are images of the request: the limits under ``images`` hold for them too.
    """

    enabled: bool = True
    max_count: PositiveInt = 4
    """Files in one request."""
    max_bytes: PositiveInt = 20 * 2**20
    max_pages: PositiveInt = 16
    """Pages of one file."""
    dpi: Annotated[float, Field(ge=10, le=600)] = 100.0
    max_page_pixels: Annotated[int, Field(ge=1024, le=52_000_000)] = 1_000_000
    """A page that would have more pixels is rendered at a lower resolution."""
    timeout_s: Seconds = 20.0
    """For rendering one file."""
    max_memory_bytes: Annotated[int, Field(ge=192 * 2**20)] = 512 * 2**20
    """Address space of the process that renders one file."""
    max_concurrent: PositiveInt | None = None
    """Files rendered at one time; half the cores where absent."""
    cache_bytes: Annotated[int, Field(ge=0)] = 32 * 2**20
    """Rendered pages kept for their sender's next turns; 0: none."""
