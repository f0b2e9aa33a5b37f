"""One engine in this process: time to first token, tokens per second, memory."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from PIL import Image

BATCH = 8
TOKENS = 32
#: Pixels of an image: 64 tokens of 8 x 8 pixels.
SIDE = 64


def measure(folder: Path, adapters: list[Path], repeats: int) -> dict[str, float]:
    """Start an engine and time it.

    Args:
        folder: with ``llm`` and ``merged``.
        adapters: to serve beside the LLM, in turns; none measures ``merged``.
        repeats: measurements, of which the medians count.

    Returns:
        ``ttft_ms`` of one request alone, ``ttft_batch_ms`` until all of a batch have a token,
        ``tokens_per_s`` of a batch that decodes, and ``memory_mib`` of the process.
    """
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
    host = None
    if adapters:
        headers = [AdapterHeader.open(adapter) for adapter in adapters]
        tokens = headers[0].image_settings.max_tokens
        limits = HostLimits(len(adapters), kernel_rank(headers[0].rank), tokens)
        llm = vllm.LLM(model=str(folder / "llm"), **(settings | vllm_settings(limits)))
        host = AdapterLLM(llm, folder / "llm", limits)
        for number, adapter in enumerate(adapters):
            host.load(f"adapter-{number}", adapter)
    else:
        llm = vllm.LLM(model=str(folder / "merged"), **settings)

    def seconds(count: int, tokens: int) -> float:
        params = vllm.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        prompts: list[Any] = [_prompt(number) for number in range(count)]
        loras = None
        if host is not None:
            names = [f"adapter-{number % len(adapters)}" for number in range(count)]
            prompts = [host.prompt(n, prompt) for n, prompt in zip(names, prompts, strict=True)]
            loras = [host.request(name) for name in names]
        began = time.perf_counter()
        llm.generate(prompts, params, lora_request=loras, use_tqdm=False)
        return time.perf_counter() - began

    seconds(BATCH, TOKENS)  # warm up
    alone = [seconds(1, 1) for _ in range(repeats)]
    first = [seconds(BATCH, 1) for _ in range(repeats)]
    whole = [seconds(BATCH, 1 + TOKENS) for _ in range(repeats)]
    return {
        "ttft_ms": 1000 * median(alone),
        "ttft_batch_ms": 1000 * median(first),
        "tokens_per_s": BATCH * TOKENS / (median(whole) - median(first)),
        "memory_mib": psutil.Process().memory_info().rss / 2**20,
    }


def _prompt(number: int) -> dict[str, Any]:
    image = Image.new("RGB", (SIDE, SIDE), (20 * number, 100, 200))
    return {
        "prompt": f"<image> What colour is the circle? {number}",
        "multi_modal_data": {"image": [image]},
    }
