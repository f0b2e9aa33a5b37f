"""The paper's ablation in the small, as one command that ends in a table and plots.

    python -m benchmarks.training.ablation [--out DIR] [--seeds 1 2 3] [--only-report]

Causal or bidirectional attention, with nothing, the last block, or every block distilled, at two
ranks; the same data in the same order for every configuration of a seed. Each run leaves a JSON
file as soon as it is done, and what is there is not run again: the command can be stopped and
started at will. What it reports: training loss over steps, steps to reach given losses relative to
vanilla LoRA (causal, nothing distilled), and held-out accuracy with its spread over seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import Aimv2VisionModel

from benchmarks.training.ablation_report import write_report
from benchmarks.training.world import make_world, settings
from model_plugin import VoRAForCausalLM, VoRAImageProcessor, VoRAProcessor
from vora_serve.training import Distillation, Optimisation, PretrainRecipe, Teacher, pretrain
from vora_serve.training.data import Tokeniser
from vora_serve.training.data_recipe import Data, Source
from vora_serve.training.features import FeatureCache
from vora_serve.training.held_out import HeldOutSet

ATTENTIONS = ("causal", "bidirectional")
MODES = ("none", "last-block", "block-wise")


@dataclass(frozen=True)
class Run:
    """One run of one configuration."""

    attention: str
    mode: str
    rank: int
    seed: int

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.attention}_{self.mode}_r{self.rank}_s{self.seed}"


def recipe_of(run: Run, steps: int, batch: int) -> PretrainRecipe:
    """The recipe of a run; of one seed, only attention, distillation and rank differ."""
    return PretrainRecipe.model_validate(
        {
            "attention": run.attention,
            "distillation": Distillation.model_validate({"mode": run.mode}),
            "lora_rank": run.rank,
            "n_vit": 3,  # LoRA in the same blocks, whatever is distilled
            "max_length": 192,
            "optimisation": Optimisation(
                steps=steps,
                batch_size=batch,
                lr=2e-3,
                betas=(0.9, 0.98),
                warmup_steps=20,
                log_every=1,
                seed=run.seed,
            ),
        }
    )


def train(run: Run, world: Path, work: Path, steps: int, batch: int) -> dict[str, Any]:
    """Do a run; returns its curves and what it knows in the end."""
    base = VoRAProcessor.from_pretrained(world / "text")
    processor = VoRAProcessor(VoRAImageProcessor(settings()), base.tokenizer, base.chat_template)
    model = VoRAForCausalLM.from_pretrained(world / "text", dtype=torch.float32)
    causal = run.attention == "causal"
    model.config.vision_attention_mask = "default" if causal else "bidirectional"
    teacher = Teacher(Aimv2VisionModel.from_pretrained(world / "teacher"))
    images = tuple(str(world / f"images-{i}.parquet") for i in range(4))
    data = Data(sources=(Source(files=images),), shuffle_buffer=512)
    held_out = Data(sources=(Source(files=(str(world / "held_out.parquet"),)),), shuffle_buffer=500)
    judge = HeldOutSet(held_out, Tokeniser(processor, 192), 500, max(1, steps // 4), 50)
    shutil.rmtree(work, ignore_errors=True)
    wall, cpu = time.perf_counter(), time.process_time()
    pretrain(
        model,
        processor,
        teacher,
        data,
        recipe_of(run, steps, batch),
        work,
        work / "out",
        cache=FeatureCache(world / "features", 10**9),
        held_out=judge,
    )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    lines = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines if line["stage"] == "pretrain"]
    curves = {
        key: [line[key] for line in training]
        for key in training[-1]
        if key == "lm" or key.startswith("aux_")
    }
    shutil.rmtree(work)
    return asdict(run) | {
        "steps": steps,
        "batch": batch,
        "curves": curves,
        "held_out": [line for line in lines if "held_out_accuracy" in line],
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        "load": os.getloadavg()[1],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--world", type=Path, default=Path("runs/world"))
    parser.add_argument("--out", type=Path, default=Path("docs/measurements/ablation"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--ranks", type=int, nargs="+", default=[48, 24])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="Begin no run later.")
    parser.add_argument("--only-report", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    folder: Path = arguments.out / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    # Complete seeds and ranks first: what there is can be reported at any time.
    runs = [
        Run(attention, mode, rank, seed)
        for rank in arguments.ranks
        for seed in arguments.seeds
        for attention in ATTENTIONS
        for mode in MODES
    ]
    begun = time.monotonic()
    if not arguments.only_report:
        make_world(arguments.world)
        for number, run in enumerate(runs, 1):
            file = folder / f"{run.name}.json"
            if file.exists() or time.monotonic() - begun > 60 * arguments.minutes:
                continue
            sys.stdout.write(f"{number} of {len(runs)}: {run.name}\n")
            work = arguments.world / "ablation" / run.name
            result = train(run, arguments.world, work, arguments.steps, arguments.batch)
            temporary = file.with_suffix(".tmp")
            temporary.write_text(json.dumps(result) + "\n", encoding="utf-8")
            temporary.replace(file)
    found = [json.loads(f.read_text(encoding="utf-8")) for f in sorted(folder.glob("*.json"))]
    if not found:
        sys.exit("There are no runs to report on.")
    machine = (
        f"{os.cpu_count()} CPU cores ({platform.machine()}), {arguments.threads} thread(s) a run, "
        f"float32, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{time.strftime('%Y-%m-%d')}"
    )
    sys.stdout.write(write_report(found, arguments.out, machine, len(runs)))


if __name__ == "__main__":
    main()
