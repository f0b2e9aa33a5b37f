"""One batch while it runs: the requests that are left, and the files that its answers go to."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from vora_serve.gateway.batches import lines
from vora_serve.gateway.batches.call import Answer
from vora_serve.gateway.batches.lines import RequestLine
from vora_serve.gateway.batches.models import Status, StoredBatch
from vora_serve.gateway.batches.store import Store, now


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class StorageFullError(Exception):
    """The answers of a batch exceed what its tenant, or all, may keep."""


class BatchRun:
    """Reads, counts and writes; its answers' files are also the record of how far it has come.

    Args:
        batch: Which.
        store: Where.
        max_line_bytes: Of a request.
    """

    def __init__(self, batch: StoredBatch, store: Store, max_line_bytes: int) -> None:
        self.batch = batch
        self.tasks: set[asyncio.Task[None]] = set()
        self.ending: Status | None = None
        """What it becomes when its last request has ended; None while it goes on."""
        self._store = store
        self._limit = max_line_bytes
        self._requests: Iterator[RequestLine] = iter(())
        self._dirty = False
        self._appending = threading.Lock()
        self._recorded_bytes = batch.output_bytes
        self._read_all = False
        self._again: deque[RequestLine] = deque()
        self._not_before = 0.0

    def open(self) -> None:
        """Find what has been answered already. Blocks."""
        batch, store = self.batch, self._store
        good = lines.answered(store.path(batch.output_id))
        bad = lines.answered(store.path(batch.error_id))
        batch.completed, batch.failed = len(good), len(bad - good)
        batch.output_bytes = sum(
            path.stat().st_size
            for path in map(store.path, (batch.output_id, batch.error_id))
            if path.exists()
        )
        self._again.clear()
        self._read_all = False
        self._requests = lines.requests(
            store.path(batch.input_file_id), batch.endpoint, self._limit, good | bad
        )

    @property
    def expired(self) -> bool:
        """Whether its window is over."""
        return now() >= self.batch.expires_at

    @property
    def exhausted(self) -> bool:
        """Whether every request has been handed out."""
        return self._read_all and not self._again

    @property
    def waiting(self) -> bool:
        """Whether nothing of it may start for the moment."""
        return self.ending is not None or self.exhausted or time.monotonic() < self._not_before

    async def next_request(self) -> RequestLine | None:
        """The next request; None where none is left."""
        if self._again:
            return self._again.popleft()
        request = await asyncio.to_thread(next, self._requests, None)
        self._read_all = request is None
        return request

    def put_back(self, request: RequestLine, wait_s: float) -> None:
        """Have a request made again; nothing else of this batch starts before ``wait_s``."""
        self._again.append(request)
        self._not_before = time.monotonic() + wait_s

    async def write(self, request: RequestLine, answer: Answer) -> None:
        """Keep an answer.

        Raises:
            StorageFullError: there is no room for it.
        """
        good = answer.status == 200
        body: Any = answer.tree()
        line = lines.answer_line(request.custom_id, answer.status, answer.request_id, body)
        await asyncio.to_thread(self._append, line, good)
        if good:
            self.batch.completed += 1
        else:
            self.batch.failed += 1
        self._dirty = True

    def _append(self, line: bytes, good: bool) -> None:
        batch = self.batch
        unrecorded = batch.output_bytes - self._recorded_bytes
        if not self._store.has_room(batch.tenant, unrecorded + len(line)):
            raise StorageFullError
        path = self._store.path(batch.output_id if good else batch.error_id)
        with self._appending, open(path, "ab", buffering=0, opener=_private) as file:
            size = file.tell()
            try:
                rest = memoryview(line)
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:  # a full disk: the next line must not join what there is of this one
                file.truncate(size)
                raise
        batch.output_bytes += len(line)

    async def record(self) -> None:
        """Keep the counts, where they have changed."""
        if self._dirty:
            self._dirty = False
            self._recorded_bytes = self.batch.output_bytes
            await asyncio.to_thread(self._store.record, self.batch)

    def write_rest(self, code: str, message: str) -> None:
        """Note of each request that is left why it was not made. Blocks."""
        for request in self._requests:
            line = lines.error_line(request.custom_id, code, message)
            try:
                self._append(line, good=False)
            except StorageFullError:
                return
            self.batch.failed += 1
