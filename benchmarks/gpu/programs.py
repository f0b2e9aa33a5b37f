"""Subprocesses that answer in lines of JSON, each read with a deadline."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.records import Row, Write


class OutOfTimeError(Exception):
    """A section's time is over."""


class Program:
    """A module run by this interpreter, in a process group of its own.

    Args:
        module: its dotted name; it answers through ``open_answers``.
        arguments: of its command line.
        log: file for everything else that it prints.
        environment: variables beside this process's own.
    """

    def __init__(
        self,
        module: str,
        *arguments: str,
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env=os.environ | (environment or {}),
                text=True,
                start_new_session=True,
            )
        self.log = log
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def answer(self, deadline: float) -> Row | None:
        """The next line; None when the program has ended.

        Args:
            deadline: by ``time.monotonic``.

        Raises:
            OutOfTimeError: no line came in time.
        """
        try:
            line = self._answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise OutOfTimeError from None
        row: Row | None = json.loads(line) if line else None
        return row

    def answers(self, deadline: float) -> Iterator[Row]:
        """All lines to the program's end.

        Raises:
            OutOfTimeError: as ``answer``.
            RuntimeError: the program failed.
        """
        while (row := self.answer(deadline)) is not None:
            yield row
        if self._process.wait(timeout=10):
            raise RuntimeError(f"exit code {self._process.returncode}, see {self.log.name}")

    def ask(self, question: Row, deadline: float) -> Row:
        """Send a line and wait for the answer to it.

        Raises:
            OutOfTimeError: as ``answer``.
            RuntimeError: the program has ended.
        """
        assert self._process.stdin is not None
        try:
            if self._process.stdin.closed:
                raise BrokenPipeError
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise RuntimeError(f"it has ended, see {self.log.name}") from None
        answer = self.answer(deadline)
        if answer is None:
            raise RuntimeError(f"it has ended, see {self.log.name}")
        return answer

    def stop(self) -> None:
        """End the program and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(timeout=30)
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                # What was not read by a program that has ended is lost.
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def open_answers() -> Write:
    """In such a program: keep stdout for answers; whatever else prints there goes to stderr."""
    stream = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def write(row: Row) -> None:
        stream.write(json.dumps(row) + "\n")

    return write


def one_line(error: BaseException) -> str:
    """What went wrong, as a sentence without a traceback."""
    text = str(error).strip() or repr(error)
    return f"{type(error).__name__}: {text.splitlines()[0]}"


def run_all(measure: Callable[[Any, Write], None], rehearse: bool) -> None:
    """The main function of a program that measures one section without being asked."""
    write = open_answers()
    os.environ |= {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    measure(rehearse, write)
