"""The run: base LLM, texts, teacher, a probe of the speed, and pretraining until the time is up."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig

from benchmarks.smol.parts import write_parts
from benchmarks.smol.sizes import PATCH, Size, pretrain_recipe, teacher_recipe
from benchmarks.smol.texts import write_texts
from benchmarks.training.world import make_text_model, write_text
from model_plugin.adapter_export import export_adapter, export_llm
from model_plugin.images import ImageSettings
from vora_core.errors import VoRAError
from vora_serve.base.importing import import_base
from vora_serve.demo.teacher import train_teacher
from vora_serve.training.estimate import count_parameters
from vora_serve.training.plan import plan_pretrain
from vora_serve.training.recipe import parse_recipe
from vora_serve.training.result import CHECKPOINTS
from vora_serve.training.run_recipe import PretrainRun
from vora_serve.world.wide import find_assets

_TINY_WIDTH = 128
_PROBE_STEPS = 48


class RunError(VoRAError, RuntimeError):
    """A stage failed; the sentence says where its output is."""


@dataclass
class Run:
    """One run.

    Attributes:
        size: how much.
        work: folder of what it makes on the way; what is there is not made again.
        out: folder of what it brings home.
        emoji: folder of the emoji.
        until: when it must be over, by ``time.monotonic``.
        most_steps: of pretraining, even if there is time for more.
        stages: seconds of each stage, on the clock and of processors.
    """

    size: Size
    work: Path
    out: Path
    emoji: Path
    until: float
    most_steps: int | None = None
    stages: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def device(self) -> str:
        """Where models compute."""
        return "cuda" if torch.cuda.is_available() else "cpu"

    def do(self) -> None:
        """All stages.

        Raises:
            VoRAError: one failed.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        if self.device == "cpu":
            torch.set_num_threads(1)  # models this small lose by more
        with self.stage("base"):
            base = self.make("base", self._write_base)
        with self.stage("texts"):
            texts = self.make("texts", self._write_texts)
        with self.stage("teacher"):
            teacher = self.make("teacher", self._write_teacher)
        probe = self.work / "probe"
        with self.stage("probe"):
            shutil.rmtree(probe, ignore_errors=True)
            self._pretrain(probe, base, teacher, texts, _PROBE_STEPS, self.until)
        speed, startup = self._speed(probe)
        left = self.until - self.size.reserve_s - startup - time.monotonic()
        steps = int(0.92 * left * speed)
        if steps < _PROBE_STEPS:
            raise RunError(f"{left:.0f} seconds are left for training, too few for any.")
        steps = min(steps, self.most_steps or steps)
        run = self.work / "run"
        with self.stage("pretraining"):
            shutil.rmtree(run, ignore_errors=True)
            stop = self.until - self.size.reserve_s
            self._pretrain(run, base, teacher, texts, steps, stop)
        with self.stage("adapter"):
            if (run / "checkpoint").exists():
                self._bring(run / "checkpoint", base)
        self._write_summary(run, steps)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        sys.stderr.write(f"smol: {name}\n")
        wall, processor = time.monotonic(), _processor_seconds()
        yield
        self.stages[name] = {
            "wall_s": round(time.monotonic() - wall, 1),
            "processor_s": round(_processor_seconds() - processor, 1),
        }

    def make(self, name: str, write: Callable[[Path], object]) -> Path:
        """A part of the run, whole or not there at all."""
        folder = self.work / name
        if not folder.exists():
            draft = self.work / f".{name}"
            shutil.rmtree(draft, ignore_errors=True)
            draft.parent.mkdir(parents=True, exist_ok=True)
            write(draft)
            draft.rename(folder)
        return folder

    def _write_base(self, folder: Path) -> None:
        if self.size.base == "smollm2":
            # Its values must be those that training computes with: adapters name them by a hash.
            dtype = "bfloat16" if self.size.bf16 else None
            for line in import_base("smollm2", folder, dtype=dtype, verify=not self.size.bf16):
                sys.stderr.write(f"  {line}\n")
            return
        draft = self.work / "tiny"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        write_text(draft)
        make_text_model(draft, self.size.base_steps, _TINY_WIDTH)
        export_llm(draft / "text", folder)

    def _write_texts(self, folder: Path) -> None:
        size, topics = self.size, [emoji.name for emoji in find_assets(self.emoji).emoji]
        kept = write_texts(
            self.work / "base", size.base, folder, size.texts, size.answer_tokens, self.device,
            topics,
        )  # fmt: skip
        sys.stderr.write(f"  {kept[0]} conversations to train on, {kept[1]} held out\n")

    def _write_teacher(self, folder: Path) -> None:
        side = self.size.image_size
        images = ImageSettings(patch_size=PATCH, image_size=side, resize_edge=side)
        vision, found = train_teacher(
            teacher_recipe(self.size), images, self.work / "teacher-log",
            device=self.device, workers=max(2, self.size.workers),
        )  # fmt: skip
        vision.save_pretrained(folder)
        accuracies = {k: round(v, 4) for k, v in found.items() if k.endswith("_accuracy")}
        (folder / "accuracies.json").write_text(json.dumps(accuracies), encoding="utf-8")

    def _recipe(self, run: Path, base: Path, teacher: Path, texts: Path, steps: int) -> Path:
        plain = pretrain_recipe(
            self.size,
            base=str(base),
            teacher=str(teacher),
            texts=str(texts / "train.jsonl"),
            emoji=str(self.emoji),
            blocks=int(AutoConfig.from_pretrained(base).num_hidden_layers),
            steps=steps,
            run=str(run),
        )
        run.mkdir(parents=True)
        file = run / "recipe.yaml"
        file.write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")
        return file

    def _pretrain(
        self, run: Path, base: Path, teacher: Path, texts: Path, steps: int, stop: float
    ) -> None:
        """``vora-serve pretrain`` in processes of its own; adapters are brought home meanwhile."""
        recipe = self._recipe(run, base, teacher, texts, steps)
        launch = [sys.executable, "-m"]
        if self.size.processes > 1:
            launch += ["torch.distributed.run", "--standalone", "--nproc_per_node"]
            launch += [str(self.size.processes), "-m"]
        threads = max(1, (os.cpu_count() or 1) // self.size.processes)
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        log_file = run / "log.txt"
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                [*launch, "vora_serve", "pretrain", "--config", str(recipe)],
                stdout=log, stderr=log, env=env,
            )  # fmt: skip
            stopped = False
            try:
                while process.poll() is None:
                    if not stopped and time.monotonic() > stop:
                        process.send_signal(signal.SIGTERM)  # it saves its state
                        stopped = True
                    self._bring_newest(run, base)
                    time.sleep(0.5)
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
        if process.returncode and not stopped:
            raise RunError(f"Pretraining failed; see {log_file}.")

    def _bring_newest(self, run: Path, base: Path) -> None:
        ready = sorted((run / CHECKPOINTS).glob("step-*"))
        if ready and run.name == "run":
            self._bring(ready[-1], base)
        for folder in ready:
            shutil.rmtree(folder)

    def _bring(self, checkpoint: Path, base: Path) -> None:
        """Write a checkpoint's adapter to ``out``, in pieces."""
        adapter = self.work / "adapter"
        name = "SmolLM2-135M-Instruct" if self.size.base == "smollm2" else base.name
        export_adapter(checkpoint, adapter, base_name=name, dtype=torch.bfloat16, overwrite=True)
        pieces = write_parts(adapter, self.out)
        sys.stderr.write(f"  adapter of {checkpoint.name}: {len(pieces)} piece(s)\n")

    def _speed(self, probe: Path) -> tuple[float, float]:
        """Steps a second of the probe once it was warm, and seconds besides its steps."""
        late = [line for line in read_metrics(probe) if line["step"] > _PROBE_STEPS // 4]
        if not late:
            raise RunError("The time was up before the speed was known; give more --minutes.")
        step = sum(line["tokens"] / line["tokens_per_second"] for line in late) / len(late)
        return 1 / step, max(0.0, self.stages["probe"]["wall_s"] - _PROBE_STEPS * step)

    def _write_summary(self, run: Path, steps: int) -> None:
        recipe = parse_recipe(
            PretrainRun, yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
        )
        counts = count_parameters(plan_pretrain(recipe), recipe.lora_rank)
        config = AutoConfig.from_pretrained(self.work / "base")
        summary = {
            "stages": self.stages,
            "steps": steps,
            "parameters": counts,
            "looked_up": config.vocab_size * config.hidden_size,
            "image_tokens": self.size.image_tokens,
            "processes": self.size.processes,
            "device": torch.cuda.get_device_name() if self.device == "cuda" else "CPU",
            "torch": torch.__version__,
            "date": time.strftime("%Y-%m-%d"),
            "load": os.getloadavg()[0],
            "teacher": json.loads((self.work / "teacher/accuracies.json").read_text()),
        }
        (self.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        shutil.copy(run / "metrics.jsonl", self.out / "metrics.jsonl")


def read_metrics(run: Path, stage: str = "pretrain") -> list[dict[str, Any]]:
    """The lines of a run's metrics of one stage."""
    file = run / "metrics.jsonl"  # missing where a run was stopped before its first step
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return [line for line in map(json.loads, text.splitlines()) if line["stage"] == stage]


def _processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
