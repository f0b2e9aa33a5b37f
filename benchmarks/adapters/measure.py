"""One engine in this process: time to first token, tokens per second, memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from PIL import Image

BATCH = 8
TOKENS = 32
#: Pixels of an image: 64 tokens of 8 x 8 pixels.
SIDE = 64

#: Seconds that so many requests take for so many tokens each.
Seconds = Callable[[int, int], float]


class Engine:
    """An engine that answers requests with an image each.

    Args:
        folder: with ``llm`` and ``merged``.
        adapters: to serve beside the LLM, in turns; none serves ``merged``.
    """

    def __init__(self, folder: Path, adapters: list[Path]) -> None:
        import vllm

        from model_plugin.engine.adapters.flags import vllm_settings
        from model_plugin.engine.adapters.offline import AdapterLLM
        from model_plugin.engine.adapters.settings import HostLimits
        from vora_core.adapter import AdapterHeader, kernel_rank

        settings: dict[str, Any] = {
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 512,
            "max_num_seqs": BATCH,
            "enable_prefix_caching": False,
            "mm_processor_cache_gb": 0,
        }
        before = _private_mib()
        self._host = None
        self._names = [f"adapter-{number}" for number in range(len(adapters))]
        if adapters:
            headers = [AdapterHeader.open(adapter) for adapter in adapters]
            tokens = headers[0].image_settings.max_tokens
            limits = HostLimits(len(adapters), kernel_rank(headers[0].rank), tokens)
            self._llm = vllm.LLM(model=str(folder / "llm"), **settings, **vllm_settings(limits))
            self._host = AdapterLLM(self._llm, folder / "llm", limits)
            for name, adapter in zip(self._names, adapters, strict=True):
                self._host.load(name, adapter)
        else:
            self._llm = vllm.LLM(model=str(folder / "merged"), **settings)
        self.seconds(BATCH, TOKENS)  # warm up
        #: Private memory of the process, MiB; and what it had before the engine started.
        self.memory, self.libraries = _private_mib(), before

    def seconds(self, count: int, tokens: int) -> float:
        """How long so many requests take for so many tokens each, all at once."""
        from vllm import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        prompts: list[Any] = [_prompt(number) for number in range(count)]
        loras = None
        if self._host is not None:
            names = [self._names[number % len(self._names)] for number in range(count)]
            prompts = [self._host.prompt(n, p) for n, p in zip(names, prompts, strict=True)]
            loras = [self._host.request(name) for name in names]
        began = time.perf_counter()
        self._llm.generate(prompts, params, lora_request=loras, use_tqdm=False)
        return time.perf_counter() - began


def measure(folder: Path, adapters: list[Path], repeats: int) -> dict[str, float]:
    """Start an engine and time it.

    Args:
        folder: with ``llm`` and ``merged``.
        adapters: to serve beside the LLM; none measures ``merged``.
        repeats: measurements, of which the medians count.

    Returns:
        As :func:`times`, with the memory of the process.
    """
    engine = Engine(folder, adapters)
    memory = {"memory_mib": engine.memory, "engine_mib": engine.memory - engine.libraries}
    return times(engine.seconds, repeats) | memory


def times(seconds: Seconds, repeats: int) -> dict[str, float]:
    """Medians of measurements.

    Args:
        seconds: how long requests take.
        repeats: measurements of each kind.

    Returns:
        ``ttft_ms`` of one request alone, ``ttft_batch_ms`` until all of a batch have a token, and
        ``tokens_per_s`` of a batch that decodes.
    """
    alone = [seconds(1, 1) for _ in range(repeats)]
    first = [seconds(BATCH, 1) for _ in range(repeats)]
    whole = [seconds(BATCH, 1 + TOKENS) for _ in range(repeats)]
    return {
        "ttft_ms": 1000 * median(alone),
        "ttft_batch_ms": 1000 * median(first),
        "tokens_per_s": BATCH * TOKENS / (median(whole) - median(first)),
    }


def answer_orders(folder: Path) -> None:
    """Be one of many merged engines: memory on a line, then a line for each order.

    An order is a line with a number of tokens; one request is answered with so many.
    """
    engine = Engine(folder, [])
    _say(f"{engine.memory} {engine.libraries}")
    for order in sys.stdin:
        engine.seconds(1, int(order))
        _say("done")


def _say(line: str) -> None:
    sys.stdout.write(f"\n{ANSWER}{line}\n")
    sys.stdout.flush()


#: What an engine's own lines begin with, among those of libraries.
ANSWER = "engine: "


def _private_mib() -> float:
    """Memory that this process shares with no other."""
    return float(psutil.Process().memory_full_info().uss / 2**20)


def _prompt(number: int) -> dict[str, Any]:
    image = Image.new("RGB", (SIDE, SIDE), (20 * number, 100, 200))
    return {
        "prompt": f"<image> What colour is the circle? {number}",
        "multi_modal_data": {"image": [image]},
    }
