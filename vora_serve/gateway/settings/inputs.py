"""The settings of what comes with a request: images, and files whose pages become images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vora_serve.gateway.settings.types import Cidr, Port, PositiveInt, Seconds, Section


class ImageCacheSettings(Section):
    """Images by URL: kept with their validators, for at most the TTL."""

    enabled: bool = False
    """Keep images fetched by URL, so that the next turn does not fetch them again."""
    max_bytes: PositiveInt = 64 * 2**20
    """Memory for them in each worker; the least recently used leave first."""
    ttl_s: Seconds = 300.0
    """An image older than this is fetched anew. More saves fetches, and shows changed images
    later."""


class ImageSettings(Section):
    """Which images are taken, from where, and how large."""

    fetch: bool = True
    """Whether http(s) URLs are fetched at all."""
    schemes: list[Literal["https", "http", "data"]] = ["https", "http", "data"]
    """Which kinds of image URL are taken. Without ``http`` and ``https``, only ``data:`` URLs
    are."""
    ports: list[Port] = [80, 443]
    """Ports of public addresses that images may be fetched from."""
    private_ports: list[Port] | None = None
    """Ports inside ``allow_networks``; any where absent."""
    allow_networks: list[Cidr] = []
    """Private networks that may be fetched from; none by default."""
    deny_networks: list[Cidr] = []
    """Networks that are never fetched from, even where ``allow_networks`` has them."""
    allow_hosts: list[str] | None = None
    """Where given, only these hosts (``example.org``, ``*.example.org``); an empty list: none."""
    deny_hosts: list[str] = []
    """Hosts that are never fetched from (``example.org``, ``*.example.org``)."""
    max_count: PositiveInt = 16
    """Images in one request, pages of files included. Each costs decoding and its tokens of
    context."""
    max_bytes: PositiveInt = 20 * 2**20
    """The largest image as it arrives, decoded from base64."""
    max_total_bytes: PositiveInt = 24 * 2**20
    """All images of a request together, as they arrive."""
    max_pixels: PositiveInt = 52_000_000
    """The most pixels of one image, by its header. More takes more memory and time to decode."""
    max_total_pixels: PositiveInt = 200_000_000
    """Pixels of all images of a request together."""
    min_side_pixels: PositiveInt = 2
    """The least width and height of an image."""
    max_aspect_ratio: Annotated[float, Field(ge=1)] = 200.0
    """How many times longer than wide, or wider than long, an image may be."""
    max_url_chars: PositiveInt = 8192
    """Characters of an image's http(s) URL."""
    timeout_s: Seconds = 10.0
    """For one image: names, connection, redirects and body together."""
    total_timeout_s: Seconds = 30.0
    """For fetching all images of a request together."""
    connect_timeout_s: Seconds = 4.0
    """For connecting to an image's host; part of ``timeout_s``."""
    max_redirects: Annotated[int, Field(ge=0, le=10)] = 5
    """Redirects that one image's URL may take; each target passes all checks. 0 refuses
    redirects."""
    allow_downgrade: bool = False
    """Whether an https URL may redirect to http."""
    max_concurrent_fetches: PositiveInt = 64
    """Images that a worker fetches at one time; further ones wait within their timeouts."""
    max_concurrent_fetches_per_request: PositiveInt = 8
    """Images of one request that are fetched at one time. Less keeps a request with many images
    from crowding out others."""
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
    """The ``User-Agent`` header of fetches; some hosts ask for a contact address in it."""
    proxy: Annotated[str, Field(pattern=r"^http://[^/]+/?$")] | None = None
    """An HTTP proxy to fetch through; it resolves names then."""
    detail_pixels: dict[Literal["low", "high", "auto", "original"], PositiveInt] = {}
    """Largest number of pixels by the caller's ``detail``. By default only ``low`` has one, 512 x
    512, and only for models of native resolution."""
    cache: ImageCacheSettings = ImageCacheSettings()
    """Images by URL that are kept between requests."""


class DocumentSettings(Section):
    """PDF files in requests, whose pages become images; needs the extra ``vora-serve[pdf]``.

    The pages are images of the request: the limits under ``images`` hold for them too.
    """

    enabled: bool = True
    """Whether files in requests are read at all; off refuses them."""
    max_count: PositiveInt = 4
    """Files in one request."""
    max_bytes: PositiveInt = 20 * 2**20
    """The largest file as it arrives, decoded from base64."""
    max_pages: PositiveInt = 16
    """Pages of one file."""
    dpi: Annotated[float, Field(ge=10, le=600)] = 100.0
    """The resolution that pages are rendered at, in dots per inch. More makes small print legible,
    and takes more tokens."""
    max_page_pixels: Annotated[int, Field(ge=1024, le=52_000_000)] = 1_000_000
    """A page that would have more pixels is rendered at a lower resolution."""
    timeout_s: Seconds = 20.0
    """For rendering one file."""
    max_memory_bytes: Annotated[int, Field(ge=192 * 2**20)] = 512 * 2**20
    """Address space of the process that renders one file."""
    max_concurrent: PositiveInt = 2
    """Files rendered at one time, each in a process of its own."""
    cache_bytes: Annotated[int, Field(ge=0)] = 32 * 2**20
    """Rendered pages kept for their sender's next turns; 0: none."""
