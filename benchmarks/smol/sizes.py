"""How much a run is: the one for a GPU, and its rehearsal on two CPU cores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vora_serve.demo.recipe import TeacherRecipe
from vora_serve.training import Optimisation
from vora_serve.world.wide.rows import Kind


@dataclass(frozen=True)
class Size:
    """Everything that differs between a run and its rehearsal.

    Attributes:
        base: ``smollm2``, or ``tiny``: an LLM of four blocks, trained here on the demo's text.
        base_steps: of the tiny one's training.
        image_size: side of the square that the model sees, pixels; patches are 14 a side.
        teacher_width, teacher_blocks, teacher_steps, teacher_images: of the vision teacher.
        texts: conversations drawn from the base LLM, and the longest answer in tokens.
        text_weight: their share of the samples.
        rank: of the LoRA factors, which all blocks get.
        distillation: weight of its loss.
        max_length, batch, micro: tokens of a packed sequence, sequences of a step and of a pass.
        optimizer, lr: of pretraining; cosine.
        bf16: compute in bfloat16.
        processes, workers: of training, and of each process for data.
        held_out: samples that the run is evaluated on while it lasts.
        reserve_s: seconds kept for the end of the run.
        families: how often parts of the world are drawn that are drawn more or less than usual.
    """

    base: Literal["smollm2", "tiny"]
    base_steps: int
    image_size: int
    teacher_width: int
    teacher_blocks: int
    teacher_steps: int
    teacher_images: int
    texts: int
    answer_tokens: int
    text_weight: float
    rank: int
    distillation: float
    max_length: int
    batch: int
    micro: int
    optimizer: Literal["adamw", "muon"]
    lr: float
    bf16: bool
    processes: int
    workers: int
    held_out: int
    reserve_s: float
    families: Mapping[Kind, float] = field(default_factory=dict)

    @property
    def image_tokens(self) -> int:
        """Tokens of an image."""
        return (self.image_size // PATCH) ** 2


PATCH = 14
SIZES = {
    "gpu": Size(
        "smollm2", 0, 112, 384, 6, 1500, 24000, 3000, 96, 0.2, 64, 6.0, 2048, 32, 16, "adamw", 6e-4,
        True, 1, 16, 512, 40.0,
    ),
    "rehearsal": Size(
        "tiny", 100, 84, 128, 3, 700, 6000, 400, 48, 0.15, 64, 6.0, 512, 4, 2, "muon", 1.5e-3,
        False, 2, 0, 96, 30.0,
        # The tiny LLM spells names and words byte by byte: their losses would outweigh all others.
        {"emoji": 0.1, "flag": 0.1, "word": 0.1, "clock": 0.2, "pair": 0.2, "chart": 2.0,
         "count": 1.5, "digits": 3.0},
    ),
}  # fmt: skip


def teacher_recipe(size: Size) -> TeacherRecipe:
    """The vision teacher: an AIMv2 that learns from labelled shapes and digits."""
    return TeacherRecipe(
        hidden_size=size.teacher_width,
        layers=size.teacher_blocks,
        heads=4,
        mlp=2 * size.teacher_width,
        images=size.teacher_images,
        optimisation=Optimisation(
            steps=size.teacher_steps,
            batch_size=32,
            lr=1.5e-3,
            optimizer="muon",
            weight_decay=0.1,
            schedule="cosine",
            final_lr=0.1,
            betas=(0.9, 0.98),
            warmup_steps=50,
            log_every=50,
            seed=7,
        ),
    )


def pretrain_recipe(
    size: Size,
    *,
    base: str,
    teacher: str,
    texts: str,
    emoji: str,
    blocks: int,
    steps: int,
    run: str,
) -> dict[str, Any]:
    """The recipe for ``vora-serve pretrain``.

    Args:
        size: of the run.
        base, teacher, texts, emoji: their folders and files.
        blocks: of the LLM; all of them get LoRA.
        steps: optimizer steps.
        run: folder of the run.
    """
    dtype = "bfloat16" if size.bf16 else "float32"
    world = {"files": [emoji], "format": "world", "families": dict(size.families)}
    return {
        "model": {"path": base, "dtype": dtype},
        "teacher": {"path": teacher, "dtype": dtype},
        "images": {"resolution": "fixed", "image_size": size.image_size, "patch_size": PATCH},
        "data": {
            "sources": [
                world | {"weight": 1 - size.text_weight},
                {"files": [texts], "weight": size.text_weight},
            ],
            "shuffle_buffer": 64,
            "shards": size.processes * max(1, size.workers),
            "pack": True,
            "pack_window": 64,
        },
        "attention": "bidirectional",
        "distillation": {"mode": "block-wise", "alignment": "paper", "weight": size.distillation},
        "lora_rank": size.rank,
        "n_vit": blocks,
        "max_length": size.max_length,
        "optimisation": {
            "steps": steps,
            "batch_size": size.batch,
            "micro_batch_size": size.micro,
            "lr": size.lr,
            "optimizer": size.optimizer,
            "schedule": "cosine",
            "final_lr": 0.05,
            "betas": [0.9, 0.98],
            "warmup_steps": min(50, steps // 10),
            "bf16": size.bf16,
            "workers": size.workers,
            "log_every": max(1, steps // 60),
            "save_every": 0,
            "export_every": max(1, steps // 4),
            "seed": 3,
        },
        "held_out": {
            "sources": [world | {"split": "test"}],
            "every": max(1, steps // 4),
            "samples": size.held_out,
        },
        "run": run,
        "out": f"{run}/checkpoint",
    }
