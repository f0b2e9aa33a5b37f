"""Load that notices every stream that is cut."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import httpx


def _reason(line: str) -> str | None:
    """The ``finish_reason`` in a line of a stream."""
    if not line.startswith("data: {"):
        return None
    choices = json.loads(line.removeprefix("data: ")).get("choices") or [{}]
    reason: str | None = choices[0].get("finish_reason")
    return reason


@dataclass
class Tally:
    """What became of the requests."""

    finished: int = 0
    refused: int = 0
    """Not begun: no connection, or one without an answer, or 503 while draining; tried again."""
    cut: list[str] = field(default_factory=list)
    """Begun, and not ended as a stream ends: with all its tokens, and the end's mark."""


class Load:
    """Callers that stream one answer after the other until they are told to stop.

    Args:
        url: The gateway.
        body: The request, whose answer has exactly ``max_tokens`` tokens; a number is added to its
            text, so that each is another one.
        callers: Streams at a time.
    """

    def __init__(self, url: str, body: dict[str, Any], callers: int) -> None:
        self._url = url
        self._body = body
        self.tally = Tally()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._call, args=(number,), daemon=True)
            for number in range(callers)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(300)

    def _call(self, number: int) -> None:
        count = 0
        while not self._stop.is_set():
            count += 1
            body = json.loads(json.dumps(self._body))
            body["messages"][0]["content"] += f" {number} {count}"
            self.once(body)

    def once(self, body: dict[str, Any]) -> None:
        begun, last, reason = False, "", None
        try:
            with httpx.Client(trust_env=False, timeout=300) as client:
                url = f"{self._url}/v1/chat/completions"
                with client.stream("POST", url, json=body) as response:
                    if response.status_code == 503:
                        self._refuse()
                        return
                    begun = True
                    if response.status_code != 200:
                        last = f"{response.status_code} {response.read()[:200]!r}"
                    else:
                        for line in response.iter_lines():
                            last = line or last
                            reason = _reason(line) or reason
        except httpx.HTTPError as error:
            # Docker's proxy takes connections for a container that does not listen, and resets
            # them; a server that stops does so to those that it has not accepted yet.
            if not begun and not isinstance(error, httpx.TimeoutException):
                self._refuse()
                return
            last = f"{type(error).__name__}: {error}"
        with self._lock:
            # An engine that gives up on a request may end its stream in good order, but says so.
            if last == "data: [DONE]" and reason == "length":
                self.tally.finished += 1
            else:
                self.tally.cut.append(f"{reason}: {last[:300]}")

    def _refuse(self) -> None:
        with self._lock:
            self.tally.refused += 1
        time.sleep(0.3)

    def wait_finished(self, more: int, limit_s: float = 300) -> None:
        """Wait until so many further streams have ended well.

        Raises:
            TimeoutError
        """
        goal = self.tally.finished + more
        until = time.monotonic() + limit_s
        while self.tally.finished < goal:
            if time.monotonic() > until:
                raise TimeoutError(f"streams do not end: {self.tally}")
            time.sleep(0.1)
