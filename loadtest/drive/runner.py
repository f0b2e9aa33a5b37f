"""Runs every point, pairing servers round by round, and keeps what comes."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from loadtest.cost import describe_checkpoint
from loadtest.drive.generator import Generator
from loadtest.drive.machine import describe_machine, describe_versions
from loadtest.drive.points import Point, points_of, requests_for, seed_for, write_requests
from loadtest.drive.store import RunFolder
from loadtest.servers import Server, Sums, Target, means_between, scrape, watch
from loadtest.settings import RunSettings, Workload
from vora_core.errors import EngineError, GeneratorError, VoRAError


def say(line: str) -> None:
    """Progress for a person, on standard error."""
    sys.stderr.write(f"loadtest: {line}\n")
    sys.stderr.flush()


class Runner:
    """A run.

    Args:
        settings: what to measure.
        folder: where results go.
        python: interpreter with vLLM, for the load generator; this one by default.
    """

    def __init__(self, settings: RunSettings, folder: RunFolder, python: str | None = None) -> None:
        self._settings = settings
        self._folder = folder
        self._python = python
        self._servers: dict[str, Server] = {}
        for spec in settings.servers:
            upstream = self._servers.get(spec.upstream) if spec.upstream else None
            self._servers[spec.name] = Server(spec, settings.engine, folder.logs, upstream)
        self._text_tokens_of: dict[tuple[str, str], int | None] = {}

    def run(self, generator: Generator | None = None) -> None:
        """Everything that is not there yet.

        Args:
            generator: a running one; by default one is started for the run.

        Raises:
            VoRAError: a server or the generator broke down; what was complete is kept.
        """
        settings = self._settings
        head = {
            "settings": settings.model_dump(mode="json"),
            "machine": describe_machine(),
            "versions": describe_versions(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "load_at_start": os.getloadavg(),
            "checkpoints": {
                name: describe_checkpoint(path)
                for name, server in self._servers.items()
                if (path := server.checkpoint()) is not None
            },
            "rates": {},
        }
        head = self._folder.begin(head, ("settings", "checkpoints"))
        if self._is_done(head):
            say("every round is there already")
            return
        with (
            tempfile.TemporaryDirectory(prefix="loadtest-") as work,
            self._generator(generator) as sending,
            self._all_running() if settings.together else contextlib.nullcontext(),
        ):
            self._folder.amend(generator=f"vllm bench serve {sending.version}")
            for workload in settings.workloads:
                for point in points_of(workload):
                    self._measure(point, sending, Path(work))
                if workload.rates == "auto":
                    for point in points_of(workload, self._rates(workload)):
                        self._measure(point, sending, Path(work))
        self._folder.amend(
            ended=datetime.now(UTC).isoformat(timespec="seconds"), load_at_end=os.getloadavg()
        )

    def _generator(self, given: Generator | None) -> contextlib.AbstractContextManager[Generator]:
        if given is not None:
            return contextlib.nullcontext(given)
        return Generator(self._folder.logs / "generator.log", self._python)

    def _is_done(self, head: dict[str, Any]) -> bool:
        return all(
            self._folder.is_complete(point.id, repeat)
            for workload in self._settings.workloads
            for point in points_of(workload, head["rates"].get(workload.name, [0.0]))
            for repeat in range(self._settings.repeats)
        )

    def _rates(self, workload: Workload) -> list[float]:
        """The rates of ``rates: auto``: shares of the best throughput seen in a closed loop."""
        head = self._folder.head()
        known: dict[str, list[float]] = head["rates"]
        if workload.name not in known:
            best = 0.0
            for point in points_of(workload):
                for _, results in self._folder.rounds(point.id):
                    for result in results.values():
                        good = sum(1 for error in result["errors"] if not error)
                        best = max(best, good / result["duration_s"])
            if best == 0:
                raise VoRAError(f"Workload {workload.name}: no request succeeded.")
            rates = [float(f"{share * best:.2g}") for share in workload.auto_shares]
            self._folder.amend(rates=known | {workload.name: rates})
            return rates
        return known[workload.name]

    def _takes_part(self, workload: Workload) -> list[Server]:
        names = workload.servers or list(self._servers)
        return [self._servers[name] for name in self._servers if name in names]

    def _measure(self, point: Point, generator: Generator, work: Path) -> None:
        servers = self._takes_part(point.workload)
        warm: set[str] = set()
        for repeat in range(self._settings.repeats):
            if self._folder.is_complete(point.id, repeat):
                continue
            self._folder.start_round(point.id, repeat)
            order = servers
            if self._settings.order == "abba" and repeat % 2:
                order = servers[::-1]
            file = work / "requests.jsonl"
            for server in order:
                seed = self._seed(point, repeat, server)
                contents = requests_for(point, point.workload.requests, seed)
                write_requests(file, contents)
                with self._running(server):
                    if server.name not in warm or not self._settings.together:
                        self._warm_up(point, server, generator, work)
                        warm.add(server.name)
                    result = self._ask(point, server, generator, file, seed)
                    result["text_prompt_tokens"] = self._text_tokens(point, server, contents[0])
                self._folder.save(point.id, repeat, server.name, result)
                self._tell(point, repeat, server, result)
            self._folder.complete(point.id, repeat)

    def _seed(self, point: Point, repeat: int | str, server: Server) -> int:
        """The same for every engine; another for each further way to the same one.

        What an engine has been asked directly is in its caches when it is asked through a gateway.
        """
        root = server.root()
        ways = [name for name, each in self._servers.items() if each.root() is root]
        return seed_for(self._settings.seed, point.id, repeat, ways.index(server.name))

    def _warm_up(self, point: Point, server: Server, generator: Generator, work: Path) -> None:
        count = point.workload.warmup
        if not count:
            return
        seed = self._seed(point, "warm-up", server)
        file = work / "warm-up.jsonl"
        write_requests(file, requests_for(point, count, seed))
        closed = Point(point.workload, point.size, concurrency=point.concurrency or 1)
        result = self._send(closed, server, generator, file, count, seed)
        if all(result["errors"]):
            raise EngineError(
                f"Every warm-up request to {server.name} failed, the first with: "
                f"{_last_line(result['errors'][0])}"
            )

    def _ask(
        self, point: Point, server: Server, generator: Generator, file: Path, seed: int
    ) -> dict[str, Any]:
        server.check()
        before = [scrape(url, server.target.key) for url in server.metrics_urls]
        load = os.getloadavg()[0]
        began = time.time()
        with contextlib.ExitStack() as stack:
            watched = [stack.enter_context(watch(pid)) for pid in server.pids()]
            raw = self._send(point, server, generator, file, point.workload.requests, seed)
        after = [scrape(url, server.target.key) for url in server.metrics_urls]
        server.check()
        expected = point.workload.output_tokens
        return {
            "server": server.name,
            "point": point.id,
            "began": began,
            "load": load,
            "start_s": server.start_s,
            "identity": server.identity(),
            "duration_s": raw["duration"],
            "ttft_s": raw["ttfts"],
            "itl_s": raw["itls"],
            "e2e_s": raw["latencies"],
            "start_at_s": raw["start_times"],
            "prompt_tokens": raw["input_lens"],
            "output_tokens": raw["output_lens"],
            "errors": [
                _last_line(error) or _wrong_length(length, expected)
                for error, length in zip(raw["errors"], raw["output_lens"], strict=True)
            ],
            "used": [vars(each) for each in watched],
            "metrics": _merge(before, after),
        }

    def _send(
        self,
        point: Point,
        server: Server,
        generator: Generator,
        file: Path,
        count: int,
        seed: int,
    ) -> dict[str, Any]:
        try:
            return generator.send(server.target, point, file, count, seed, self._settings.timeout_s)
        except GeneratorError:
            server.check()  # if it is the server that has gone, say that
            raise

    def _text_tokens(
        self, point: Point, server: Server, content: Sequence[dict[str, Any]]
    ) -> int | None:
        """Prompt tokens of the first request without its images; None when that fails."""
        if point.workload.images is None:
            return None
        key = (point.id, server.name)
        if key not in self._text_tokens_of:
            text = [part for part in content if part["type"] == "text"]
            self._text_tokens_of[key] = prompt_tokens(server.target, text)
        return self._text_tokens_of[key]

    def _tell(self, point: Point, repeat: int, server: Server, result: dict[str, Any]) -> None:
        good = [t for t, e in zip(result["ttft_s"], result["errors"], strict=True) if not e]
        middle = f"TTFT {sorted(good)[len(good) // 2] * 1000:.0f} ms" if good else "no answer"
        failed = sum(1 for error in result["errors"] if error)
        say(
            f"{point.id} {repeat + 1}/{self._settings.repeats} {server.name}: {middle}"
            + (f", {failed} FAILED: {next(e for e in result['errors'] if e)}" if failed else "")
        )

    @contextlib.contextmanager
    def _all_running(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for server in self._servers.values():
                stack.callback(server.stop)
                say(f"starting {server.name}")
                server.start()
            yield

    @contextlib.contextmanager
    def _running(self, server: Server) -> Iterator[None]:
        """With one server at a time: this one and its upstream, for the block."""
        if self._settings.together:
            yield
            return
        with contextlib.ExitStack() as stack:
            chain = [server]
            while chain[0].upstream is not None:
                chain.insert(0, chain[0].upstream)
            for each in chain:
                stack.callback(each.stop)
                each.start()
            yield


def prompt_tokens(target: Target, content: Sequence[dict[str, Any]]) -> int | None:
    """How many tokens a server counts in a message; None when it does not answer."""
    body = {
        "model": target.model,
        "max_tokens": 1,
        "messages": [{"role": "user", "content": list(content)}],
    }
    headers = {"Authorization": f"Bearer {target.key}"} if target.key else {}
    try:
        answer = httpx.post(
            f"{target.url}/v1/chat/completions", json=body, headers=headers, timeout=300
        )
        return int(answer.raise_for_status().json()["usage"]["prompt_tokens"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return None


def _merge(before: Sequence[Sums], after: Sequence[Sums]) -> dict[str, float]:
    """Of a gateway and its engine together; their names differ."""
    result: dict[str, float] = {}
    for old, new in zip(before, after, strict=True):
        result |= means_between(old, new)
    return result


def _last_line(error: str) -> str:
    """What a traceback ends with."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _wrong_length(length: int, expected: int) -> str:
    """Why an answer is incomplete; the generator counts a stream that broke off as a success."""
    return "" if length == expected else f"an answer of {length} tokens instead of {expected}"
