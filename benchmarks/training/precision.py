"""Fine-tuning in bfloat16 with float32 weights, beside float32 and beside bfloat16 weights.

python -m benchmarks.training.precision --out docs/measurements/training-precision.json

Fine-tunes the demo's checkpoint on the demo's world, with several seeds of the samples, in three
ways: everything in float32; computing in bfloat16 with what trains in float32 (what
``vora-serve finetune`` does); and weights in bfloat16 (what it did before). Runs that the file
holds already are not repeated.
"""

import argparse
import itertools
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import vora_serve.demo
from model_plugin import VoRAForCausalLM, VoRAProcessor
from vora_serve.demo.samples import Images
from vora_serve.training import FinetuneRecipe, Optimisation, stages

CHECKPOINT = Path(vora_serve.demo.__file__).parent / "checkpoint"
WAYS = ("float32", "bfloat16, float32 weights", "bfloat16 weights")


def fine_tune(way: str, seed: int, steps: int, batch: int, lr: float) -> dict[str, Any]:
    """One fine-tune: its losses, the share of weights that moved, memory and speed."""
    half = way != "float32"
    model = VoRAForCausalLM.from_pretrained(
        CHECKPOINT, dtype=torch.bfloat16 if half else torch.float32, attn_implementation="sdpa"
    )
    before = {name: p.detach().float().clone() for name, p in model.named_parameters()}
    recipe = FinetuneRecipe(
        optimisation=Optimisation(
            steps=steps,
            batch_size=batch,
            micro_batch_size=2,
            lr=lr,
            schedule="cosine",
            warmup_steps=20,
            bf16=half,
            log_every=1,
            seed=seed,
        ),
        max_length=512,
    )
    keep = stages._keep_float32
    if way == "bfloat16 weights":
        stages._keep_float32 = lambda model: None
    with tempfile.TemporaryDirectory() as work:
        start = time.perf_counter()
        try:
            stages.finetune(
                model,
                VoRAProcessor.from_pretrained(CHECKPOINT),
                Images(seed, text_share=0.05),
                recipe,
                Path(work) / "run",
                Path(work) / "out",
            )
        finally:
            stages._keep_float32 = keep
        seconds = time.perf_counter() - start
        lines = (Path(work) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    named = dict(model.named_parameters())
    moved = sum(int((named[n].detach().float() != before[n]).sum()) for n in before)
    total = sum(p.numel() for p in named.values())
    norms = [n for n in before if "norm" in n]
    moved_norms = sum(int((named[n].detach().float() != before[n]).sum()) for n in norms)
    # Weights and gradients as they are held, AdamW's two moments in the dtype of the weights.
    size = next(iter(named.values())).element_size()
    return {
        "way": way,
        "seed": seed,
        "losses": [json.loads(line)["lm"] for line in lines],
        "moved": moved / total,
        "moved_norms": moved_norms / sum(before[n].numel() for n in norms),
        "bytes_per_weight": 4 * size,
        "seconds_per_step": seconds / steps,
    }


def mean(runs: list[dict[str, Any]], key: str) -> float:
    """Mean of a number of some runs."""
    return statistics.fmean(run[key] for run in runs)


def summary(runs: list[dict[str, Any]], last: int) -> dict[str, Any]:
    """Numbers of each way: mean loss of the last steps by seed, and the rest."""
    found: dict[str, Any] = {}
    for way in dict.fromkeys(run["way"] for run in runs):
        own = [run for run in runs if run["way"] == way]
        losses = [statistics.fmean(run["losses"][-last:]) for run in own]
        found[way] = {
            "loss of the last steps, by seed": [round(loss, 5) for loss in losses],
            "share of weights moved": round(mean(own, "moved"), 4),
            "share of norm weights moved": round(mean(own, "moved_norms"), 4),
            "bytes a weight, with gradient and optimizer": mean(own, "bytes_per_weight"),
            "seconds a step": round(mean(own, "seconds_per_step"), 4),
        }
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    runs = json.loads(args.out.read_text(encoding="utf-8"))["runs"] if args.out.exists() else []
    done = {(run["way"], run["seed"]) for run in runs}
    for way, seed in itertools.product(WAYS, range(args.seeds)):
        if (way, seed) in done:
            continue
        runs.append(fine_tune(way, seed, args.steps, args.batch, args.lr))
        result = {
            "steps": args.steps,
            "batch": args.batch,
            "lr": args.lr,
            "threads": args.threads,
            "torch": torch.__version__,
            "machine": platform.machine(),
            "summary": summary(runs, last=min(50, args.steps)),
            "runs": runs,
        }
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(summary(runs, last=min(50, args.steps)), indent=2) + "\n")


if __name__ == "__main__":
    main()
