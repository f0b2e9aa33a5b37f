"""The load generator, ``vllm bench serve``, in a subprocess that stays for the whole run."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from loadtest.drive.points import Point
from loadtest.servers import Target
from vora_core.errors import GeneratorError

WORKER = Path(__file__).parents[1] / "programs" / "bench_worker.py"


class Generator:
    """A running generator.

    Args:
        python: interpreter that has vLLM.
        log: file for what it prints.

    Raises:
        GeneratorError: it did not start.
    """

    def __init__(self, log: Path, python: str | None = None, start_timeout_s: float = 900) -> None:
        self._log = log
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        with log.open("ab") as said:
            self._process = subprocess.Popen(
                [python or sys.executable, str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                env=env,
            )
        self._buffer = b""
        try:
            self.version = str(self._answer(start_timeout_s).get("vllm"))
        except GeneratorError:
            self.close()
            raise

    def __enter__(self) -> Generator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def send(
        self, target: Target, point: Point, requests: Path, count: int, seed: int, timeout_s: float
    ) -> dict[str, Any]:
        """Send ``count`` requests as the point says, and wait for all answers.

        Args:
            target: where to.
            point: pace and length of answers.
            requests: file with them.
            count: how many of them.
            seed: of arrival times.
            timeout_s: for all together.

        Returns:
            The generator's own result: per-request arrays ``ttfts``, ``itls``, ``latencies``,
            ``start_times``, ``queue_times`` in seconds, ``input_lens``, ``output_lens`` in tokens,
            ``errors``; and ``duration``, in seconds.

        Raises:
            GeneratorError
        """
        result = requests.with_suffix(".result.json")
        length = point.workload.output_tokens
        args = ["--backend", "openai-chat", "--base-url", target.url]
        args += ["--endpoint", "/v1/chat/completions", "--model", target.model]
        args += ["--skip-tokenizer-init", "--dataset-name", "custom_image"]
        args += ["--dataset-path", str(requests), "--disable-shuffle", "--no-oversample"]
        args += ["--num-prompts", str(count), "--custom-output-len", str(length)]
        args += ["--ignore-eos", "--temperature", "0", "--seed", str(seed), "--disable-tqdm"]
        args += ["--request-rate", "inf" if point.rate is None else str(point.rate)]
        if point.concurrency is not None:
            args += ["--max-concurrency", str(point.concurrency)]
        if target.key is not None:
            args += ["--header", f"Authorization=Bearer {target.key}"]
        args += ["--save-result", "--save-detailed"]
        args += ["--result-dir", str(result.parent), "--result-filename", result.name]
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"args": args}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise GeneratorError(f"The load generator has ended; see {self._log}.") from None
        self._answer(timeout_s)
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        result.unlink()
        found.pop("generated_texts", None)
        return found

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        until = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._process.stdout], [], [], until - time.monotonic())
            if not ready:
                self._process.kill()
                raise GeneratorError(f"The load generator did not end within {timeout_s:.0f} s.")
            piece = os.read(self._process.stdout.fileno(), 65536)
            if not piece:
                code = self._process.wait()
                raise GeneratorError(
                    f"The load generator ended with code {code}; see {self._log}. It is vLLM's: "
                    "does this interpreter have vLLM?"
                )
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if not answer["ok"]:
            raise GeneratorError(f"The load generator failed: {answer['error']}")
        return answer
