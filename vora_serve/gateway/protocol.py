"""HTTP/1.1 towards clients: uvicorn's, with offers to change the protocol left unanswered."""

from __future__ import annotations

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_OF_THE_OFFER = frozenset((b"upgrade", b"http2-settings"))


class GatewayProtocol(HttpToolsProtocol):
    """Serves a request that carries ``Upgrade`` as if it did not (RFC 9110, section 7.8).

    The parser takes such a request to end with its header, and what follows to be the other
    protocol. So its header is parsed again without the offer, and its body after that. Stock Java
    clients offer ``h2c`` with every request.
    """

    _offered = False

    def on_headers_complete(self) -> None:
        """Begin the request, unless its header has to be parsed again."""
        self._offered = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        if not self._offered:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End the request."""
        if not self._offered:
            super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        """Parse what the client sent."""
        self._unset_keepalive_if_required()
        try:
            while data:
                try:
                    self.parser.feed_data(data)
                    return
                except httptools.HttpParserUpgrade as offer:
                    if not self._offered:  # CONNECT: answered, and nothing behind it is a request
                        return
                    data = self._head_without_offer() + data[offer.args[0] :]
                    self.parser = httptools.HttpRequestParser(self)
                    self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")

    def _head_without_offer(self) -> bytes:
        version = self.parser.get_http_version().encode("ascii")
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        for name, value in self.headers:
            if name in _OF_THE_OFFER:
                continue
            if name == b"connection":
                options = [option.strip() for option in value.split(b",")]
                value = b", ".join(
                    option for option in options if option.lower() not in _OF_THE_OFFER
                )
            lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join([*lines, b"", b""])
