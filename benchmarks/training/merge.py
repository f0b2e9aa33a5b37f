"""Time and memory of merging a 7B-shaped pretraining checkpoint; the checkpoint is synthetic.

    python -m benchmarks.training.merge [--layers 28] [--rank 1024] [--work DIR] [--json FILE]

Writes a checkpoint of Qwen2.5-7B's shape with LoRA factors in the first 24 blocks (bfloat16, in
shards), merges it in a process of its own, whose peak of resident memory is measured by the
system, checks a few tensors against W + B A, and removes everything again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from model_plugin import VoRAConfig, VoRAImageProcessor, VoRAProcessor
from model_plugin.checkpoint import Checkpoint, expected_shapes
from model_plugin.export import export_checkpoint
from vora_core.geometry import ImageSettings
from vora_core.layout import LINEAR_LAYERS, LORA_A, LORA_B
from vora_serve.demo.language import train_tokenizer
from vora_serve.training.parts import known_shape

_POOL = 1 << 22
#: Runs the command in ``argv`` from a small process. Linux counts what a process held before it
#: became another program, so a command that a large process starts would seem as large.
_LAUNCHER = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[2:], check=False)
peak = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as file:
    file.write(f"{peak.ru_maxrss} {peak.ru_utime + peak.ru_stime}")
sys.exit(done.returncode)
"""


def synthetic(config: VoRAConfig, rank: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Random tensors of a pretraining checkpoint, cut from one pool of random numbers."""
    pool = torch.randn(_POOL, generator=torch.Generator().manual_seed(0)).bfloat16()

    def tensor(shape: tuple[int, ...], scale: float, offset: int) -> torch.Tensor:
        size = 1
        for side in shape:
            size *= side
        start = (offset * 7919) % _POOL
        repeated = pool.roll(start).repeat(-(-size // _POOL))[:size]
        return (repeated * scale).view(shape)

    for number, (name, shape) in enumerate(sorted(expected_shapes(config).items())):
        if name.endswith("norm.weight"):
            yield name, torch.ones(shape, dtype=torch.bfloat16)
        else:
            yield name, tensor(shape, 0.02, number)
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and module in config.lora_modules:
            yield module + LORA_A, tensor((rank, shape[1]), 0.02, number + 1)
            yield module + LORA_B, tensor((shape[0], rank), 0.005, number + 2)


def write(out: Path, layers: int, rank: int, shard_gb: float) -> None:
    """Write the synthetic checkpoint."""
    llm = known_shape("Qwen/Qwen2.5-7B-Instruct")
    assert llm is not None
    llm.num_hidden_layers = layers
    llm.layer_types = ["full_attention"] * layers
    targets = {"r": rank, "layers": min(24, layers), "target_modules": list(LINEAR_LAYERS)}
    config = VoRAConfig.from_llm_config(llm, lora=targets)
    config.dtype = torch.bfloat16
    images = VoRAImageProcessor(ImageSettings())
    processor = VoRAProcessor(images, train_tokenizer(1, 512, samples=100))
    export_checkpoint(
        out,
        config,
        synthetic(config, rank),
        processor,
        merged=False,
        max_shard_bytes=int(shard_gb * 1e9),
    )


def size(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(file.stat().st_size for file in folder.iterdir())


def check(source: Path, merged: Path) -> float:
    """Largest error of some merged rows against W + B A in float64, in roundings of bfloat16."""
    one, two = (Checkpoint.open(path).weights for path in (source, merged))
    worst = 0.0
    for layer in ("0.mlp.down_proj", "1.self_attn.k_proj", "0.self_attn.o_proj"):
        name = f"llm.model.layers.{layer}"
        middle = two.shapes[name + ".weight"][0] // 2
        rows = range(middle, middle + 16)
        factors = one.read(name + LORA_B, rows).double() @ one.read(name + LORA_A).double()
        wanted = one.read(name + ".weight", rows).double() + factors
        got = two.read(name + ".weight", rows).double()
        unit = wanted.abs().clamp(min=1e-3) * 2**-8
        worst = max(worst, float(((got - wanted).abs() / unit).max()))
    return worst


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--rank", type=int, default=1024)
    parser.add_argument("--shard-gb", type=float, default=4.0)
    parser.add_argument("--work", type=Path, default=Path("runs/merge-benchmark"))
    parser.add_argument("--no-verify", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(work).free
    needed = int((2.4e9 + arguments.layers * 1.2e9) * 1.1)
    if free < needed:
        sys.exit(f"{needed / 1e9:.0f} GB are needed in {work}, {free / 1e9:.0f} GB are free.")
    try:
        result = measure(arguments, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    text = json.dumps(result, indent=2)
    sys.stdout.write(text + "\n")
    if arguments.json is not None:
        arguments.json.write_text(text + "\n", encoding="utf-8")


def measured(command: list[str], work: Path) -> tuple[str, int, float]:
    """Run a command: its output, its peak of resident memory in bytes, its seconds of CPU.

    Exits with the command's own error where it fails.
    """
    report = work / "used"
    launched = [sys.executable, "-c", _LAUNCHER, str(report), *command]
    done = subprocess.run(launched, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    peak, seconds = report.read_text(encoding="utf-8").split()
    return done.stdout, int(peak) << 10, float(seconds)


def measure(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Write, merge, check."""
    source, merged = work / "source", work / "merged"
    begun = time.perf_counter()
    write(source, arguments.layers, arguments.rank, arguments.shard_gb)
    wrote = time.perf_counter() - begun
    command = [sys.executable, "-m", "vora_serve", "merge", f"source={source}", f"out={merged}"]
    command += [f"shard_gb={arguments.shard_gb}", f"verify={not arguments.no_verify}"]
    load = os.getloadavg()[0]
    begun = time.perf_counter()
    said, peak, cpu_seconds = measured(command, work)
    took = time.perf_counter() - begun
    return {
        "layers": arguments.layers,
        "rank": arguments.rank,
        "source_gb": round(size(source) / 1e9, 2),
        "merged_gb": round(size(merged) / 1e9, 2),
        "verified": not arguments.no_verify,
        "peak_rss_gib": round(peak / 2**30, 3),
        "merge_seconds": round(took, 1),
        "merge_cpu_seconds": round(cpu_seconds, 1),
        "write_seconds": round(wrote, 1),
        "largest_error_in_roundings": round(check(source, merged), 3),
        "said": said.strip().splitlines(),
        "load_average_before": load,
        "machine": f"{os.cpu_count()} CPU cores ({platform.machine()}), torch {torch.__version__}",
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    main()
