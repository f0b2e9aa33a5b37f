"""Training throughput: the naive form beside ours, on the same samples, in one run, at one loss.

    python -m benchmarks.training.throughput [--device cuda] [--size small|base] [--json FILE]

Naive: samples padded to the longest of their batch as they come, dense masks, the hidden states of
all blocks kept by model and teacher, logits of every token. Ours: samples packed, attention sample
by sample (CPU) or by block masks (CUDA), hidden states by hooks, logits of targets alone.

Both take forward and backward passes over the same samples in the same steps, turn about, and the
medians are compared. Stated: real tokens (no padding) per second, peak memory on CUDA, and MFU
(model FLOPs of real tokens against the device's peak, where that is given).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn import functional
from transformers import Aimv2VisionConfig, Aimv2VisionModel, Qwen2Config

from model_plugin import VoRAConfig, VoRAForCausalLM
from model_plugin.spans import block_ids
from vora_serve.training import Distillation, Teacher
from vora_serve.training.attention import DOCUMENTS
from vora_serve.training.data import IGNORE, Batch, Example, collate
from vora_serve.training.lora import attach_lora
from vora_serve.training.packing import pack, plan_packs
from vora_serve.training.step import StepOptions, TrainingModel, unpatchify

IMAGE_TOKEN = 3


@dataclass(frozen=True)
class Size:
    """What is trained. Widths, depths, and tokens of a sequence.

    ``kv_heads``, ``mlp`` and ``teacher_heads`` follow from the others where they are not given.
    """

    width: int
    layers: int
    heads: int
    vocabulary: int
    teacher_width: int
    teacher_layers: int
    grid: int
    max_length: int
    samples: int
    batch: int
    rank: int
    kv_heads: int | None = None
    mlp: int | None = None
    teacher_heads: int | None = None


#: "0.5b" and "1.5b" are Qwen2.5's, with a teacher of the width and depth of AIMv2-Huge.
SIZES = {
    "tiny": Size(64, 2, 4, 2000, 48, 2, 6, 256, 8, 4, 8),
    "small": Size(256, 6, 8, 16000, 192, 4, 12, 1024, 32, 8, 64),
    "base": Size(1536, 16, 12, 151936, 1024, 12, 32, 2048, 64, 8, 256),
    "0.5b": Size(896, 24, 14, 151936, 1536, 24, 32, 2048, 16, 4, 256, 2, 4864, 12),
    "1.5b": Size(1536, 28, 12, 151936, 1536, 24, 32, 2048, 16, 4, 256, 2, 8960, 12),
}


def samples(size: Size, seed: int) -> list[Example]:
    """A step's samples: four captioned images to one conversation, lengths as such data have."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(size.samples):
        image_tokens = size.grid**2 if index % 5 else 0
        mean, spread = (90, 0.5) if image_tokens else (220, 0.9)
        words = int(np.clip(rng.lognormal(np.log(mean), spread), 8, size.max_length - image_tokens))
        ids = rng.integers(10, size.vocabulary, 12 + words)
        length = min(size.max_length, len(ids) + image_tokens)
        ids = np.concatenate([ids[:6], np.full(image_tokens, IMAGE_TOKEN), ids[6:]])[:length]
        labels = ids.copy()
        labels[: 12 + image_tokens] = IGNORE
        spans = [(6, 5 + image_tokens)] if image_tokens else []
        patches = rng.standard_normal((image_tokens, 3 * 14**2)).astype(np.float32)
        grids = [[size.grid, size.grid]] if image_tokens else np.empty((0, 2))
        found.append(
            Example(
                torch.from_numpy(ids),
                torch.from_numpy(labels),
                block_ids(length, spans),
                torch.from_numpy(patches),
                torch.as_tensor(np.asarray(grids), dtype=torch.int64),
            )
        )
    return found


def build(size: Size, implementation: str, device: str, bf16: bool) -> TrainingModel:
    """Model, teacher and heads, always the same weights."""
    torch.manual_seed(0)
    llm = Qwen2Config(
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads or size.heads // 2,
        intermediate_size=size.mlp or 3 * size.width,
        vocab_size=size.vocabulary,
    )
    config = VoRAConfig.from_llm_config(
        llm,
        image_size=14 * size.grid,
        vision_embedding_intermediate_size=size.teacher_width,
        image_token_id=IMAGE_TOKEN,
    )
    config._attn_implementation = "sdpa"
    model = VoRAForCausalLM(config)
    vision = Aimv2VisionConfig(
        hidden_size=size.teacher_width,
        intermediate_size=2 * size.teacher_width,
        num_hidden_layers=size.teacher_layers,
        num_attention_heads=size.teacher_heads or size.heads,
        image_size=14 * size.grid,
        patch_size=14,
        use_head=False,
    )
    teacher = Teacher(Aimv2VisionModel(vision))
    if bf16:
        model.llm.to(torch.bfloat16)
        teacher.to(torch.bfloat16)
    module = TrainingModel(model, teacher, Distillation(), StepOptions(bf16=bf16, loss_chunk=4096))
    attach_lora(model, size.rank, size.teacher_layers)
    # B starts at zero; a little noise makes the losses depend on every factor.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    model.llm.config._attn_implementation = implementation
    teacher.to(device)
    return module.to(device).train()


def naive_losses(module: TrainingModel, batch: Batch) -> dict[str, torch.Tensor]:
    """The step as one would write it first."""
    model, teacher = module.model, module.teacher[0]
    has_images = len(batch.image_grid_hw) > 0
    embeds = model.embed(
        batch.input_ids,
        batch.pixel_values if has_images else None,
        batch.image_grid_hw if has_images else None,
    )
    with torch.autocast(batch.input_ids.device.type, torch.bfloat16, enabled=module.options.bf16):
        output = model.llm(
            inputs_embeds=embeds, attention_mask=batch.visible, output_hidden_states=True
        )
        logits = output.logits[:, :-1].float()
        lm = functional.cross_entropy(
            logits.flatten(0, 1),
            batch.labels[:, 1:].flatten(),
            ignore_index=IGNORE,
            reduction="sum",
        )
        losses = {"lm": lm, "targets": (batch.labels[:, 1:] >= 0).sum()}
        if has_images and module.aux_vision is not None:
            grid = int(batch.image_grid_hw[0, 0])
            pixels = unpatchify(batch.pixel_values, (grid, grid), 14)
            with torch.no_grad():
                dtype = next(teacher.vision.parameters()).dtype
                seen = teacher.vision(pixel_values=pixels.to(dtype), output_hidden_states=True)
            # Hidden state 0 is the embedding's; the last one of the LLM is after its norm.
            mine = {i: output.hidden_states[i + 1][batch.image_mask] for i in module.blocks}
            targets = [seen.hidden_states[i + 1].flatten(0, 1) for i in module.blocks]
            for block, loss in module.aux_vision(mine, targets).items():
                losses[f"aux_{block}"] = loss
            losses["image_tokens"] = batch.image_mask.sum()
    return losses


def run_step(
    module: TrainingModel,
    batches: list[Batch],
    losses_of: Callable[[TrainingModel, Batch], dict[str, torch.Tensor]],
    device: str,
) -> tuple[float, float]:
    """Forward and backward passes of a step; returns seconds and the loss (equation 4)."""
    targets = sum(int((b.labels[:, 1:] >= 0).sum()) for b in batches)
    images = sum(int(b.image_mask.sum()) for b in batches)
    begun = time.perf_counter()
    total = 0.0
    for batch in batches:
        losses = losses_of(module, batch)
        loss = losses["lm"] / targets
        if "image_tokens" in losses:
            aux = torch.stack([v for k, v in losses.items() if k.startswith("aux_")])
            loss = loss + aux.mean() * losses["image_tokens"] / images
        loss.backward()
        total += float(loss.detach())
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begun
    module.zero_grad(set_to_none=True)
    return seconds, total


def flops(size: Size, module: TrainingModel, tokens: int, image_tokens: int) -> float:
    """Model FLOPs of a step over real tokens, attention left out.

    Frozen weights cost their forward pass and the activations' gradients, trained ones their own
    gradients too; the teacher its forward pass over image tokens.
    """
    llm = module.model.llm
    trained = sum(p.numel() for p in llm.parameters() if p.requires_grad)
    frozen = sum(p.numel() for n, p in llm.named_parameters() if not p.requires_grad)
    frozen -= size.vocabulary * size.width  # the embedding is looked up
    teacher = sum(p.numel() for p in module.teacher[0].parameters())
    return float((4.0 * frozen + 6.0 * trained) * tokens + 2.0 * teacher * image_tokens)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run both forms turn about."""
    size, device = SIZES[arguments.size], arguments.device
    bf16 = device == "cuda" or arguments.bf16
    ours_by = "flex_attention" if device == "cuda" else DOCUMENTS
    forms: dict[str, tuple[TrainingModel, Callable[..., dict[str, torch.Tensor]]]] = {
        "naive": (build(size, "sdpa", device, bf16), naive_losses),
        "ours": (build(size, ours_by, device, bf16), lambda module, batch: module(batch)),
    }
    times: dict[str, list[float]] = {name: [] for name in forms}
    losses: dict[str, list[float]] = {name: [] for name in forms}
    memory: dict[str, float] = {}
    padding: dict[str, list[float]] = {name: [] for name in forms}
    tokens, image_tokens = [], []
    for step in range(arguments.steps + 1):
        examples = samples(size, step)
        groups = [examples[i : i + size.batch] for i in range(0, len(examples), size.batch)]
        packs = plan_packs([len(e.input_ids) for e in examples], size.max_length)
        rows = [pack([examples[i] for i in p], size.max_length, 0) for p in packs]
        # As many tokens in a pass as the naive form has, and no more.
        at_once = max(1, size.batch * max(len(e.input_ids) for e in examples) // size.max_length)
        batches = {
            "naive": [collate(group, 0).to(device) for group in groups],
            "ours": [
                collate(rows[i : i + at_once], 0, dense=False).to(device)
                for i in range(0, len(rows), at_once)
            ],
        }
        order = list(forms) if step % 2 else list(forms)[::-1]
        for name in order:
            module, losses_of = forms[name]
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            seconds, loss = run_step(module, batches[name], losses_of, device)
            if step == 0:
                continue  # warm-up
            times[name].append(seconds)
            losses[name].append(loss)
            real = sum(batch.real_tokens for batch in batches[name])
            padding[name].append(1 - real / sum(b.input_ids.numel() for b in batches[name]))
            if device == "cuda":
                memory[name] = torch.cuda.max_memory_allocated() / 2**30
        if step:
            tokens.append(sum(len(e.input_ids) for e in examples))
            image_tokens.append(sum(int((e.image_ids >= 0).sum()) for e in examples))
    work = flops(size, forms["ours"][0], sum(tokens), sum(image_tokens)) / len(tokens)
    per_step = statistics.mean(tokens)
    worst = max(abs(a - b) for a, b in zip(losses["naive"], losses["ours"], strict=True))
    result: dict[str, Any] = {
        "size": arguments.size,
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "steps": arguments.steps,
        "tokens_per_step": round(per_step),
        "largest_difference_of_losses": worst,
        "loss": round(losses["ours"][-1], 4),
    }
    for name in forms:
        seconds = statistics.median(times[name])
        result[name] = {
            "seconds_per_step": round(seconds, 3),
            "tokens_per_second": round(per_step / seconds, 1),
            "padding": round(statistics.mean(padding[name]), 3),
            "tflops": round(work / seconds / 1e12, 4),
        }
        if name in memory:
            result[name]["peak_memory_gib"] = round(memory[name], 2)
        if arguments.peak_tflops:
            result[name]["mfu"] = round(work / seconds / 1e12 / arguments.peak_tflops, 4)
    ratios = [a / b for a, b in zip(times["naive"], times["ours"], strict=True)]
    result["times_as_fast"] = round(statistics.median(ratios), 2)
    result["times_as_fast_range"] = [round(min(ratios), 2), round(max(ratios), 2)]
    return result | {
        "load_average": os.getloadavg()[0],
        "threads": torch.get_num_threads(),
        "machine": f"{os.cpu_count()} CPU cores ({platform.machine()})",
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=tuple(SIZES), default="small")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--bf16", action="store_true", help="On CPU too.")
    parser.add_argument("--peak-tflops", type=float, help="The device's peak, for MFU.")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    result = json.dumps(measure(arguments), indent=2)
    sys.stdout.write(result + "\n")
    if arguments.json is not None:
        arguments.json.write_text(result + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
