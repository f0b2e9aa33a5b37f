"""Prefill with an image against causal text: ``python -m benchmarks.prefill``.

A VoRA of the shape of Qwen2.5-0.5B with dummy weights, in vLLM on this machine. One prompt of text
holds one image; the other is as many tokens of text. Requests take turns; what is timed is the
engine's steps from the scheduling to the first token, image processing excluded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

#: Qwen2.5-0.5B; the tokenizer is a small one, the vocabulary of the weights the real size.
SHAPE = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


def write_model(folder: Path, image_size: int) -> None:
    """Configuration, tokenizer and image settings; vLLM makes up the weights."""
    from model_plugin.config import VoRAConfig
    from model_plugin.engine.check_end_to_end import random_checkpoint
    from model_plugin.images import ImageSettings

    random_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    config = VoRAConfig(architectures=["VoRAForCausalLM"], image_size=image_size, **SHAPE)
    config.save_pretrained(folder)
    settings = ImageSettings(image_size=image_size, resize_edge=image_size)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings.to_dict()))


def theory(tokens: int, image: int) -> dict[str, float]:
    """Multiply-accumulates of a prefill, in units of the linear layers' of the LLM.

    Causal attention of n tokens needs n (n + 1) / 2 products of a query and a key; an image of m
    tokens adds the m (m - 1) / 2 that causality hides. Each costs the head size twice per head. The
    patch embedder's linear layers run for image tokens only.
    """
    width, heads = SHAPE["hidden_size"], SHAPE["num_attention_heads"]
    head = width // heads
    kv = SHAPE["num_key_value_heads"] * head
    layer = width * (width + 2 * kv) + width * width + 3 * width * SHAPE["intermediate_size"]
    linear = tokens * layer * SHAPE["num_hidden_layers"]
    pair = 2 * head * heads * SHAPE["num_hidden_layers"]
    embedder = image * (3 * 14 * 14 * 1536 + 1536 * width)
    return {
        "causal attention": tokens * (tokens + 1) / 2 * pair / linear,
        "added by the image": image * (image - 1) / 2 * pair / linear,
        "patch embedder": embedder / linear,
    }


def prefill(engine: Any, prompt: dict[str, Any], number: int) -> tuple[float, float, int]:
    """Wall and CPU seconds of the steps of one request, and its prompt's tokens."""
    from vllm import SamplingParams

    core = engine.llm_engine
    core.add_request(str(number), prompt, SamplingParams(max_tokens=1, temperature=0))
    start, busy = time.perf_counter(), time.process_time()
    outputs: list[Any] = []
    while core.has_unfinished_requests():
        outputs += core.step()
    return (
        time.perf_counter() - start,
        time.process_time() - busy,
        len(outputs[-1].prompt_token_ids),
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prefill", description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--sizes", type=int, nargs="+", default=[448], help="image sides in px")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--text", type=int, default=64, help="text tokens around the image [64]")
    options = parser.parse_args()
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from model_plugin.engine import mark_cpu_build, require_vllm

    mark_cpu_build()
    version = require_vllm()
    import torch
    import vllm

    lines = [
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, load average "
        f"{os.getloadavg()[0]:.1f} at the start; Python {platform.python_version()}, torch "
        f"{torch.__version__}, vLLM {version}; {options.dtype}, medians of {options.repeats} "
        "paired turns.",
        "",
        "| tokens (of the image) | text ms | image ms | image / text, median of pairs (min-max) "
        "| CPU: image / text | theory: causal attention | added by the image | patch embedder |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for side in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_model(Path(folder), side)
            tokens = (side // 14) ** 2 + options.text
            engine = vllm.LLM(
                model=folder,
                load_format="dummy",
                dtype=options.dtype,
                enforce_eager=True,
                max_model_len=tokens + 16,
                max_num_batched_tokens=tokens + 16,
                max_num_seqs=2,
                enable_prefix_caching=False,
            )
        lines.append(_measure(engine, side, tokens, options))
        engine.llm_engine.engine_core.shutdown()
    sys.stdout.write("\n".join(lines) + "\n")


def _measure(engine: Any, side: int, tokens: int, options: argparse.Namespace) -> str:
    image_tokens = (side // 14) ** 2
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    half = "a" * (options.text // 2)
    prompts: dict[str, dict[str, Any]] = {
        "text": {"prompt": "a" * tokens},
        "image": {
            "prompt": f"{half}<|image_pad|>{half}",
            "multi_modal_data": {"image": Image.fromarray(pixels)},
        },
    }
    wall: dict[str, list[float]] = {"text": [], "image": []}
    cpu: dict[str, list[float]] = {"text": [], "image": []}
    for turn in range(options.repeats + 2):
        # Whoever comes second finds warm caches: they swap places.
        for name in list(prompts)[:: 1 if turn % 2 else -1]:
            seconds, busy, counted = prefill(engine, prompts[name], 2 * turn + (name == "text"))
            assert counted == tokens, (name, counted, tokens)
            if turn >= 2:
                wall[name].append(seconds)
                cpu[name].append(busy)
    ratios = sorted(i / t for i, t in zip(wall["image"], wall["text"], strict=True))
    busier = median(i / t for i, t in zip(cpu["image"], cpu["text"], strict=True))
    share = {name: f"{100 * part:.1f} %" for name, part in theory(tokens, image_tokens).items()}
    return (
        f"| {tokens} ({image_tokens}) | {1e3 * median(wall['text']):.0f} "
        f"| {1e3 * median(wall['image']):.0f} "
        f"| {median(ratios):.3f} ({ratios[0]:.3f}-{ratios[-1]:.3f}) | {busier:.3f} | "
        + " | ".join(share.values())
        + " |"
    )


if __name__ == "__main__":
    main()
