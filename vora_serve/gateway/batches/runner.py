"""Runs batches: in turn between tenants, and only where online requests leave room."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import time
from collections import OrderedDict
from dataclasses import replace
from typing import IO

from vora_serve.gateway.admission import ApiKey
from vora_serve.gateway.batches import lines
from vora_serve.gateway.batches.call import Answer, Call
from vora_serve.gateway.batches.lines import RequestLine
from vora_serve.gateway.batches.models import Status, StoredBatch
from vora_serve.gateway.batches.run import BatchRun, StorageFullError
from vora_serve.gateway.batches.store import Store
from vora_serve.gateway.settings import BatchSettings
from vora_serve.gateway.state import GatewayState

logger = logging.getLogger("vora_serve.gateway.batches")

_TICK_S = 0.5
_SWEEP_S = 60.0
_AFTER_FAULT_S = 5.0
_BACKOFF_S, _MAX_BACKOFF_S = 0.5, 60.0
_WAITED_FOR = frozenset((429, 503))  # no fault of the request: asked again for as long as it takes
_QUEUE_CODES = frozenset(("queue_timeout",))
_TRIED_AGAIN = frozenset((500, 502, 504))
_EXPIRED = "This request could not be made before the batch expired."
_CANCELLED = "The batch was cancelled before this request was made."


class BatchRunner:
    """One task of each gateway process; of those that share a folder, one runs the batches.

    Args:
        state: The gateway's.
        store: The folder.
        settings: How much at a time.
    """

    def __init__(self, state: GatewayState, store: Store, settings: BatchSettings) -> None:
        self._state = state
        self._store = store
        self._settings = settings
        self._runs: OrderedDict[str, BatchRun] = OrderedDict()
        self._turns: OrderedDict[str, None] = OrderedDict()
        self._calls: set[Call] = set()
        self._changed = asyncio.Event()
        self._swept = -_SWEEP_S
        self._looked = -_TICK_S
        self._lock: IO[bytes] | None = None

    def notice(self) -> None:
        """A batch was added or cancelled in this process: look at once."""
        self._looked = -_TICK_S
        self._changed.set()

    def _wake(self) -> None:
        """A request has ended: there may be room."""
        if self._runs:
            self._changed.set()

    async def run(self) -> None:
        """Run batches until cancelled."""
        self._state.queue.on_release = self._wake
        try:
            while not self._lead():
                await asyncio.sleep(_TICK_S)
            while True:
                try:
                    await self._step()
                except Exception:
                    logger.exception("batches cannot go on; they are tried again")
                    await asyncio.sleep(_AFTER_FAULT_S)
        finally:
            self._state.queue.on_release = None
            tasks = [task for run in self._runs.values() for task in run.tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._lock is not None:
                self._lock.close()

    def _lead(self) -> bool:
        """Whether this process is the one that runs the batches; the lock ends with it."""
        file = (self._store.folder / "runner.lock").open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return False
        self._lock = file
        return True

    async def _step(self) -> None:
        self._changed.clear()
        now = time.monotonic()
        if now - self._swept >= _SWEEP_S:
            self._swept = now
            await asyncio.to_thread(self._store.sweep)
        if now - self._looked >= _TICK_S:
            self._looked = now
            await self._look()
            for run in self._runs.values():
                await run.record()
        while not self._state.draining and self._room() and await self._start_one():
            pass
        for run in list(self._runs.values()):
            if not run.tasks and (run.exhausted or run.ending is not None):
                await self._settle(run)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TICK_S):
                await self._changed.wait()

    # ---------------------------------------------------------------------- what there is

    async def _look(self) -> None:
        """Take in new batches, and what callers did to those that run."""
        unfinished = await asyncio.to_thread(self._store.unfinished)
        for batch in unfinished:
            run = self._runs.get(batch.id)
            if run is None:
                run = await self._take_in(batch)
            if run is None or run.ending is not None:
                continue
            if batch.status == "cancelling":
                self._end(run, "cancelled")
            elif run.expired:
                self._end(run, "expired")
            elif self._key(batch) is None:
                problem = "The batch's API key is not valid any more."
                run.batch.errors.append(_problem("invalid_api_key", problem))
                self._end(run, "failed")
        for batch_id in self._runs.keys() - {batch.id for batch in unfinished}:
            del self._runs[batch_id]

    async def _take_in(self, batch: StoredBatch) -> BatchRun | None:
        limit = self._state.settings.server.max_body_bytes
        if batch.status == "validating" and not await self._validate(batch, limit):
            return None
        run = BatchRun(batch, self._store, limit)
        await asyncio.to_thread(run.open)
        self._runs[batch.id] = run
        self._turns.setdefault(batch.tenant)
        logger.info(
            "batch %s: %d of %d requests answered", batch.id,
            batch.completed + batch.failed, batch.total,
        )  # fmt: skip
        return run

    async def _validate(self, batch: StoredBatch, limit: int) -> bool:
        path = self._store.path(batch.input_file_id)
        try:
            batch.total, batch.errors = await asyncio.to_thread(
                lines.check, path, batch.endpoint, self._settings.max_requests, limit
            )
        except OSError:
            batch.errors = [_problem("file_not_found", "The input file cannot be read.")]
        if batch.errors:
            changes = {"total": batch.total, "errors": batch.errors}
            await asyncio.to_thread(
                lambda: self._store.move(batch.id, "failed", "validating", **changes)
            )
            return False
        return await asyncio.to_thread(
            lambda: self._store.move(batch.id, "in_progress", "validating", total=batch.total)
        )

    def _key(self, batch: StoredBatch) -> ApiKey | None:
        """In whose name a batch runs now; None where its key may not ask any more."""
        kept = ApiKey.model_validate(batch.key)
        return self._state.keys.current(kept)

    # ---------------------------------------------------------------------- what is started

    def _room(self) -> bool:
        """Whether one more request may start beside those online and those of batches."""
        queue = self._state.queue
        admitted = sum(call.phase in ("prefill", "decode") for call in self._calls)
        queued = sum(call.phase == "queue" for call in self._calls)
        online = max(0, queue.in_flight - admitted) + max(0, queue.queued - queued)
        return online + len(self._calls) < self._settings.max_in_flight

    async def _start_one(self) -> bool:
        """Start a request of the tenant whose turn it is; whether there was one."""
        for tenant in list(self._turns):
            runs = [run for run in self._runs.values() if run.batch.tenant == tenant]
            if not runs:
                del self._turns[tenant]
                continue
            for run in runs:
                if run.waiting:
                    continue
                request = await run.next_request()
                if request is not None:
                    self._turns.move_to_end(tenant)
                    self._start(run, request)
                    return True
        return False

    def _start(self, run: BatchRun, request: RequestLine) -> None:
        key = self._key(run.batch)
        if key is None:
            return
        call = Call(self._state, key, run.batch.endpoint, request.body)
        self._calls.add(call)
        task = asyncio.create_task(self._make(run, request, call))
        run.tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._calls.discard(call)
            run.tasks.discard(task)
            if not task.cancelled() and task.exception() is not None:  # a full disk, say
                logger.error("an answer was not kept", exc_info=task.exception())
                run.put_back(request, _AFTER_FAULT_S)
            self._wake()

        task.add_done_callback(ended)

    async def _make(self, run: BatchRun, request: RequestLine, call: Call) -> None:
        """Make a request; keep its answer, or put it back to be made again."""
        answer = await call.run()
        if answer.status != 200 and self._state.draining:
            return  # the gateway ends: the next one makes it
        counted = self._state.metrics.batch_requests
        wait_s = self._wait_before_next(answer, request.attempts)
        if wait_s is not None:
            counted.labels("retried").inc()
            run.put_back(replace(request, attempts=request.attempts + 1), wait_s)
            return
        counted.labels("completed" if answer.status == 200 else "failed").inc()
        try:
            await run.write(request, answer)
        except StorageFullError:
            if run.ending is None:
                problem = "The answers exceed the space that batches may use."
                run.batch.errors.append(_problem("storage_full", problem))
                self._end(run, "failed")

    def _wait_before_next(self, answer: Answer, attempts: int) -> float | None:
        """Seconds after which to ask again; None where the answer is to be kept."""
        backoff = min(_BACKOFF_S * 2.0**attempts, _MAX_BACKOFF_S)
        code = answer.code
        if (answer.status in _WAITED_FOR and code != "insufficient_quota") or code in _QUEUE_CODES:
            return min(max(answer.retry_after or 0, backoff), _MAX_BACKOFF_S)
        if answer.status in _TRIED_AGAIN and attempts + 1 < self._settings.max_attempts:
            return backoff
        return None

    # ---------------------------------------------------------------------- what ends

    def _end(self, run: BatchRun, status: Status) -> None:
        """Stop a batch's requests; it is settled once they have ended."""
        run.ending = status
        for task in run.tasks:
            task.cancel()

    async def _settle(self, run: BatchRun) -> None:
        batch, status = run.batch, run.ending or "completed"
        await asyncio.to_thread(self._finish, run, status)
        self._runs.pop(batch.id, None)
        logger.info("batch %s: %s", batch.id, status)

    def _finish(self, run: BatchRun, status: Status) -> None:
        if status in ("expired", "cancelled") and run.batch.total:
            # What was being made is still the first of what is left: the file is read anew.
            run.open()
            code = "batch_expired" if status == "expired" else "batch_cancelled"
            run.write_rest(code, _EXPIRED if status == "expired" else _CANCELLED)
        elif status == "completed":
            self._store.move(run.batch.id, "finalizing", "in_progress")
        self._store.finish(run.batch, status)


def _problem(code: str, message: str) -> dict[str, str | None]:
    return {"code": code, "message": message, "line": None, "param": None}
