"""Fetched images by URL, with validators and a time to live."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


@dataclass
class CachedImage:
    """A fetched body and what a conditional request needs."""

    content: bytes
    etag: str | None
    last_modified: str | None
    fresh_until: float
    """``time.monotonic()`` until which it may be used unasked."""


class ImageCache:
    """Least recently used images, bounded by their bytes.

    Args:
        max_bytes: Sum of the bodies kept.
        ttl_s: Seconds for which a body is used without asking its host again.
    """

    def __init__(self, max_bytes: int, ttl_s: float) -> None:
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._entries: OrderedDict[str, CachedImage] = OrderedDict()
        self._bytes = 0

    def get(self, url: str) -> CachedImage | None:
        """The entry, fresh or stale."""
        entry = self._entries.get(url)
        if entry is not None:
            self._entries.move_to_end(url)
        return entry

    def fresh(self, entry: CachedImage) -> bool:
        """Whether the entry may be used without asking."""
        return time.monotonic() < entry.fresh_until

    def renew(self, entry: CachedImage) -> None:
        """Its host said that it has not changed."""
        entry.fresh_until = time.monotonic() + self._ttl_s

    def put(self, url: str, content: bytes, etag: str | None, last_modified: str | None) -> None:
        """Keep a body, dropping the least recently used ones beyond the bound."""
        self.drop(url)
        if len(content) > self._max_bytes // 4:
            return
        fresh_until = time.monotonic() + self._ttl_s
        self._entries[url] = CachedImage(content, etag, last_modified, fresh_until)
        self._bytes += len(content)
        while self._bytes > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self._bytes -= len(oldest.content)

    def drop(self, url: str) -> None:
        """Forget an entry."""
        old = self._entries.pop(url, None)
        if old is not None:
            self._bytes -= len(old.content)


class PreparedImages(Generic[K, V]):
    """Least recently used results of preparing images, bounded by their bytes.

    A chat sends its images again on every turn. Not for use from several threads.

    Args:
        max_bytes: Sum of what is kept; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._bytes = 0

    def get(self, key: K) -> V | None:
        """What was kept under the key."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: K, value: V, size: int) -> None:
        """Keep a result of ``size`` bytes, dropping the least recently used ones."""
        if key in self._entries or size > self._max_bytes // 4:
            return
        self._entries[key] = (value, size)
        self._bytes += size
        while self._bytes > self._max_bytes:
            _, (_, dropped) = self._entries.popitem(last=False)
            self._bytes -= dropped
