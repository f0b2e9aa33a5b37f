"""Fetching one image over http(s), in the way that server-side request forgery cannot use.

The name is resolved once and every address it has is checked; the connection goes to a checked
address, while ``Host`` and TLS keep the URL's name. Redirects are followed by hand, each one
checked anew and counted. Bytes are counted as they come, whatever the headers promise. Behind an
egress proxy, names are resolved by the proxy, whose own rules decide what it reaches; hosts, ports
and literal addresses are still checked here.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from vora_core.errors import ImageRequestError
from vora_serve.gateway.http1 import (
    ConnectError,
    Connection,
    Endpoint,
    Headers,
    HTTPClientError,
    Response,
)
from vora_serve.gateway.images.addresses import AddressPolicy, IPAddress, literal_address
from vora_serve.gateway.images.content_encoding import undo_content_encoding
from vora_serve.gateway.images.data_url import too_many_bytes
from vora_serve.gateway.images.proxy import EgressProxy
from vora_serve.gateway.images.resolver import Resolver
from vora_serve.gateway.images.urls import ImageURL, URLPolicy
from vora_serve.gateway.settings import ImageSettings

_REDIRECTS = frozenset((301, 302, 303, 307, 308))
#: Formats by name, so that hosts which negotiate send one of them; anything from hosts that refuse.
_ACCEPT = (
    b"image/jpeg, image/png, image/webp, image/avif, image/gif, image/bmp, image/tiff, */*;q=0.1"
)


@dataclass(frozen=True)
class Fetched:
    """A fetched body with its cache validators; ``content`` is None for 304."""

    content: bytes | None
    etag: str | None = None
    last_modified: str | None = None
    cacheable: bool = True


class ImageFetcher:
    """Fetches images within the limits of the settings.

    Args:
        settings: Hosts, networks, ports, sizes and times.
        resolver: How names become addresses.
    """

    def __init__(self, settings: ImageSettings, resolver: Resolver) -> None:
        self._settings = settings
        self._resolver = resolver
        self._urls = URLPolicy(
            [scheme for scheme in settings.schemes if scheme != "data"] if settings.fetch else [],
            settings.allow_hosts,
            settings.deny_hosts,
            settings.max_url_chars,
        )
        self._addresses = AddressPolicy(settings.allow_networks, settings.deny_networks)
        self._tls = ssl.create_default_context()
        self._tls.set_alpn_protocols(["http/1.1"])
        self._proxy = EgressProxy(settings.proxy) if settings.proxy is not None else None
        self._slots = asyncio.Semaphore(settings.max_concurrent_fetches)

    def parse(self, text: str) -> ImageURL:
        """Check a URL without touching the network.

        Raises:
            ImageRequestError
        """
        return self._urls.parse(text)

    async def fetch(
        self,
        url: ImageURL,
        limit: int,
        count: Callable[[int], None],
        etag: str | None = None,
        last_modified: str | None = None,
    ) -> Fetched:
        """The bytes behind a URL, at most ``limit`` of them.

        Args:
            url: Where it is.
            limit: Its most bytes.
            count: Told of the bytes of each piece as it comes; what it raises ends the fetch.
            etag, last_modified: Validators of a copy that the caller has.

        Raises:
            ImageRequestError: refused, unreachable or too slow.
            ImageTooLargeError: more than ``limit`` bytes.
        """
        try:
            async with asyncio.timeout(self._settings.timeout_s), self._slots:
                return await self._follow(url, limit, count, etag, last_modified)
        except TimeoutError:
            raise ImageRequestError(
                f"An image could not be fetched within {self._settings.timeout_s:g} s.",
                code="image_fetch_timeout",
            ) from None

    async def _follow(
        self,
        url: ImageURL,
        limit: int,
        count: Callable[[int], None],
        etag: str | None,
        last_modified: str | None,
    ) -> Fetched:
        first = url
        for _ in range(self._settings.max_redirects + 1):
            connection = await self._connect(url)
            try:
                response = await self._ask(connection, url, etag, last_modified)
                if response.status not in _REDIRECTS:
                    return await self._read(response, limit, count, etag or last_modified)
                location = response.header(b"location")
            finally:
                connection.close()
            if location is None:
                raise ImageRequestError("The image's host sent a redirect to nowhere.")
            url = self._urls.parse(location.decode("latin-1"), base=url)
            if (
                first.scheme == "https"
                and url.scheme == "http"
                and not self._settings.allow_downgrade
            ):
                raise ImageRequestError("The image URL redirects from https to http.")
        raise ImageRequestError(
            f"The image URL redirects more than {self._settings.max_redirects} times."
        )

    async def _connect(self, url: ImageURL) -> Connection:
        tls = self._tls if url.scheme == "https" else None
        if self._proxy is not None:
            literal = literal_address(url.host)
            if literal is not None:
                self._check(literal, url)
            self._check_port(url, private=False)
            try:
                return await self._proxy.open(url, tls, self._settings.connect_timeout_s)
            except HTTPClientError:
                raise self._unreachable() from None
        try:
            addresses = await self._resolver.resolve(url.host)
        except (OSError, UnicodeError):
            raise self._unreachable() from None
        if not addresses:
            raise self._unreachable()
        for address in addresses:
            self._check(address, url)
        for address in addresses[:4]:
            endpoint = Endpoint(
                host=str(address),
                port=url.port,
                tls=tls,
                server_hostname=url.host,
            )
            try:
                return await Connection.open(endpoint, self._settings.connect_timeout_s)
            except ConnectError:
                continue
        raise self._unreachable()

    def _check(self, address: IPAddress, url: ImageURL) -> None:
        if not self._addresses.allowed(address):
            raise ImageRequestError(
                "The image URL points to a private or otherwise refused network.",
                code="image_host_refused",
            )
        self._check_port(url, private=self._addresses.explicitly_allowed(address))

    def _check_port(self, url: ImageURL, *, private: bool) -> None:
        ports = self._settings.private_ports if private else self._settings.ports
        if ports is not None and url.port not in ports:
            raise ImageRequestError(
                "The image URL's port is not one of those allowed.", code="image_host_refused"
            )

    async def _ask(
        self, connection: Connection, url: ImageURL, etag: str | None, last_modified: str | None
    ) -> Response:
        headers: Headers = [
            (b"host", url.host_header.encode()),
            (b"user-agent", self._settings.user_agent.encode()),
            (b"accept", _ACCEPT),
            (b"accept-encoding", b"identity"),
            (b"connection", b"close"),
        ]
        if etag is not None:
            headers.append((b"if-none-match", etag.encode("latin-1")))
        if last_modified is not None:
            headers.append((b"if-modified-since", last_modified.encode("latin-1")))
        target = url.target.encode("ascii")
        if self._proxy is not None and url.scheme == "http":
            target = str(url).encode("ascii")
            headers += self._proxy.headers
        try:
            return await connection.request(b"GET", target, headers)
        except HTTPClientError:
            raise ImageRequestError(
                "The image's host gave no valid answer.", code="image_unreachable"
            ) from None

    async def _read(
        self,
        response: Response,
        limit: int,
        count: Callable[[int], None],
        conditional: str | None,
    ) -> Fetched:
        etag, modified = response.header(b"etag"), response.header(b"last-modified")
        validators = (
            etag.decode("latin-1") if etag and len(etag) < 512 else None,
            modified.decode("latin-1") if modified and len(modified) < 64 else None,
        )
        control = (response.header(b"cache-control") or b"").lower()
        cacheable = b"no-store" not in control and b"private" not in control
        if response.status == 304 and conditional:
            return Fetched(None, *validators, cacheable)
        if response.status != 200:
            raise ImageRequestError(
                f"The image's host answered with status {response.status}.",
                code="image_unreachable",
            )
        too_large = too_many_bytes(limit)
        length = response.header(b"content-length")
        if length is not None and length.isdigit() and int(length) > limit:
            raise too_large
        pieces: list[bytes] = []
        size = 0
        try:
            while piece := await response.read():
                size += len(piece)
                if size > limit:
                    raise too_large
                count(len(piece))
                pieces.append(piece)
        except HTTPClientError:
            raise ImageRequestError(
                "The image's host broke off before the image was complete.",
                code="image_unreachable",
            ) from None
        encoding = response.header(b"content-encoding") or b""
        content = undo_content_encoding(b"".join(pieces), encoding, limit)
        if len(content) > size:
            count(len(content) - size)
        return Fetched(content, *validators, cacheable)

    @staticmethod
    def _unreachable() -> ImageRequestError:
        return ImageRequestError("The image URL could not be reached.", code="image_unreachable")
