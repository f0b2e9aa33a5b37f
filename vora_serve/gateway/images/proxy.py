"""Fetching through an egress proxy, where the gateway has no other way out."""

from __future__ import annotations

import base64
import ssl

import httpx

from vora_serve.gateway.http1 import (
    ConnectError,
    Connection,
    Endpoint,
    Headers,
    HTTPClientError,
)
from vora_serve.gateway.images.urls import ImageURL


class EgressProxy:
    """An HTTP proxy.

    Args:
        url: ``http://host:port``, with ``user:password@`` where it wants them.

    Attributes:
        headers: what each request to the proxy itself carries.
    """

    def __init__(self, url: str) -> None:
        parsed = httpx.URL(url)
        self._endpoint = Endpoint(host=parsed.host, port=parsed.port or 3128)
        self.headers: Headers = []
        if parsed.userinfo:
            user = f"{parsed.username}:{parsed.password}".encode()
            self.headers = [(b"proxy-authorization", b"Basic " + base64.b64encode(user))]

    async def open(self, url: ImageURL, tls: ssl.SSLContext | None, timeout: float) -> Connection:
        """A connection for a request to ``url``: a tunnel where it is encrypted, else to the proxy.

        Raises:
            HTTPClientError
        """
        connection = await Connection.open(self._endpoint, timeout)
        if tls is None:
            return connection
        authority = f"[{url.host}]" if ":" in url.host else url.host
        target = f"{authority}:{url.port}".encode()
        try:
            answer = await connection.request(
                b"CONNECT", target, [(b"host", target), *self.headers], timeout=timeout
            )
            if not 200 <= answer.status < 300:
                raise ConnectError(f"the proxy answered with status {answer.status}")
            await connection.start_tls(tls, url.host, timeout)
        except HTTPClientError:
            connection.close()
            raise
        return connection
