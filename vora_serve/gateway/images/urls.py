"""Parsing image URLs, strictly: what two parsers could read differently is refused."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from vora_core.errors import ImageRequestError

_FORBIDDEN = re.compile(r"[\x00-\x20\x7f-\x9f\\\u2028\u2029\ufeff]")
_BEHIND_THE_HOST = re.compile(r"([^/?#]*//)?[^/?#]*[/?#]")
_HOST = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class ImageURL:
    """A checked http(s) URL, in the parts that a request is made of."""

    scheme: str
    host: str
    """Lower-case ASCII name, or a literal address without brackets."""
    port: int
    target: str
    """Path and query, percent-encoded."""

    @property
    def host_header(self) -> str:
        """The value of ``Host``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme, host and port, without the path: fit for logs."""
        return f"{self.scheme}://{self.host_header}"

    def __str__(self) -> str:
        return self.origin + self.target


def _escape_spaces(text: str) -> str:
    """Spaces in path and query as browsers send them; elsewhere they stay, to be refused."""
    behind = _BEHIND_THE_HOST.match(text)
    if " " not in text or behind is None:
        return text
    return text[: behind.end()] + text[behind.end() :].replace(" ", "%20")


def _matches(host: str, pattern: str) -> bool:
    pattern = pattern.lower().rstrip(".")
    if pattern.startswith("*."):
        return host.endswith(pattern[1:])
    return host == pattern


class URLPolicy:
    """What a URL must look like before a name is resolved.

    Args:
        schemes: ``http``, ``https``.
        allow_hosts, deny_hosts: Names or ``*.`` patterns; without an allow list, all are allowed.
        max_chars: Longest URL.
    """

    def __init__(
        self,
        schemes: Sequence[str],
        allow_hosts: Sequence[str] | None = None,
        deny_hosts: Sequence[str] = (),
        max_chars: int = 8192,
    ) -> None:
        self._schemes = frozenset(schemes)
        self._allow = None if allow_hosts is None else tuple(allow_hosts)
        self._deny = tuple(deny_hosts)
        self._max_chars = max_chars

    def parse(self, text: str, base: ImageURL | None = None) -> ImageURL:
        """Parse and check a URL, or a redirect's location relative to ``base``.

        Raises:
            ImageRequestError: with what is wrong, never with the URL itself.
        """
        if len(text) > self._max_chars:
            raise ImageRequestError(f"The image URL is longer than {self._max_chars} characters.")
        text = _escape_spaces(text)
        if _FORBIDDEN.search(text):
            raise ImageRequestError(
                "The image URL holds a backslash, a control character or a space before its path."
            )
        try:
            url = httpx.URL(text)
            if base is not None:
                url = httpx.URL(str(base)).join(url)
        except (httpx.InvalidURL, ValueError, UnicodeError):
            raise ImageRequestError("The image URL is malformed.") from None
        if url.scheme not in self._schemes or url.scheme not in _DEFAULT_PORTS:
            schemes = ", ".join(sorted(self._schemes)) or "none"
            raise ImageRequestError(f"The image URL's scheme is not one of those taken: {schemes}.")
        if url.userinfo or "@" in url.netloc.decode("latin-1"):
            raise ImageRequestError("The image URL holds credentials.")
        host = self._host(url)
        port = url.port if url.port is not None else _DEFAULT_PORTS[url.scheme]
        if not 0 < port < 65536:
            raise ImageRequestError("The image URL's port is out of range.")
        target = url.raw_path.decode("ascii")
        if not target.startswith("/") or _FORBIDDEN.search(target):
            raise ImageRequestError("The image URL is malformed.")
        return ImageURL(url.scheme, host, port, target)

    def _host(self, url: httpx.URL) -> str:
        host = url.raw_host.decode("ascii", "replace").lower()
        if not host:
            raise ImageRequestError("The image URL names no host.")
        if ":" in host:
            try:
                host = str(ipaddress.IPv6Address(host))
            except ValueError:
                raise ImageRequestError("The image URL's host is malformed.") from None
            if "%" in host:
                raise ImageRequestError("The image URL's host is malformed.")
        else:
            host = host.removesuffix(".")
            if not _HOST.fullmatch(host) or len(host) > 253:
                raise ImageRequestError("The image URL's host is malformed.")
            last = host.rsplit(".", 1)[-1]
            if last.isdigit() or last.startswith("0x"):
                # Would be an IPv4 address to some parsers: it must be one to all.
                try:
                    host = str(ipaddress.IPv4Address(host))
                except ValueError:
                    raise ImageRequestError(
                        "The image URL's host is an unusual spelling of an address."
                    ) from None
        if any(_matches(host, pattern) for pattern in self._deny) or (
            self._allow is not None and not any(_matches(host, pattern) for pattern in self._allow)
        ):
            raise ImageRequestError("Images from this host are not allowed.")
        return host
