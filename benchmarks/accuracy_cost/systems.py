"""The systems that are compared, and how each is trained from the same base LLM."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import SiglipVisionModel

from benchmarks.accuracy_cost.world import Samples
from benchmarks.training.world import IMAGE_SIZE, PATCH
from model_plugin import VoRAConfig, VoRAForCausalLM, VoRAImageProcessor, VoRAProcessor
from model_plugin.embedder import VoRAVisionEmbedding
from model_plugin.export import merge_checkpoint
from model_plugin.images import ImageSettings
from vora_serve.training import (
    FinetuneRecipe,
    Optimisation,
    PretrainRecipe,
    Teacher,
    finetune,
    pretrain,
)
from vora_serve.training.encoder import make_twin
from vora_serve.training.features import PixelBridge
from vora_serve.training.llava import load_llava, twin_images


@dataclass(frozen=True)
class System:
    """One system.

    Attributes:
        name: of its files.
        title: in tables.
        image_size: side of the square that it sees, pixels.
        merge: m; m x m patches become one token.
        encoder: whether a vision tower sees for the LLM.
    """

    name: str
    title: str
    image_size: int = IMAGE_SIZE
    merge: int = 1
    encoder: bool = False

    @property
    def images(self) -> ImageSettings:
        """How images become patches."""
        return ImageSettings(
            patch_size=PATCH,
            merge_size=self.merge,
            image_size=self.image_size,
            resize_edge=self.image_size,
        )


SYSTEMS = (
    System("vora", "VoRA"),
    System("merge-pixels", "VoRA, merge 2, equal pixels", merge=2),
    System("merge-tokens", "VoRA, merge 2, equal tokens", 2 * IMAGE_SIZE, merge=2),
    System("encoder", "encoder (LLaVA-1.5's recipe)", encoder=True),
)


@dataclass(frozen=True)
class Size:
    """How much a run is.

    Attributes:
        first: steps of the first stage: LoRA pretraining, or alignment of the projector.
        second: steps of the second one: the LLM trains.
        batch: samples of a step.
        per_family: held-out questions of each family.
    """

    first: int
    second: int
    batch: int
    per_family: int


def train(system: System, seed: int, world: Path, work: Path, size: Size) -> Path:
    """Train a system by both stages; what is there already is not done again.

    Args:
        system: which.
        seed: of samples and initialisation.
        world: holds the base LLM (``text``) and the vision tower (``encoder``).
        work: folder of the run.
        size: steps and batch.

    Returns:
        The folder of the checkpoint, bfloat16.
    """
    out = work / "checkpoint"
    if out.exists():
        return out
    stage = _train_twin if system.encoder else _train_vora
    stage(system, seed, world, work, size)
    return out


def _train_vora(system: System, seed: int, world: Path, work: Path, size: Size) -> None:
    processor = _processor(world, system.images)
    if not (work / "pretrained").exists():
        tower = SiglipVisionModel.from_pretrained(world / "encoder")
        images, side = system.images, tower.config.image_size
        norm = (images.image_mean, images.image_std)
        # It was trained on pixels normalised as ours are; only the size may differ.
        bridge = PixelBridge(*norm, *norm, side) if side != system.image_size else None
        recipe = PretrainRecipe(
            optimisation=_optimisation(size, size.first, seed, lr=1.5e-3),
            lora_rank=48,
            max_length=192,
        )
        pretrain(
            _fresh(system, seed, world), processor, Teacher(tower, bridge), Samples(seed, 1),
            recipe, work / "log-1", work / "pretrained",
        )  # fmt: skip
    if not (work / "merged").exists():
        merge_checkpoint(work / "pretrained", work / "merged")
    model = VoRAForCausalLM.from_pretrained(work / "merged", dtype=torch.float32)
    _finetune(model, processor, seed, work, "checkpoint", 2, size, ())


def _train_twin(system: System, seed: int, world: Path, work: Path, size: Size) -> None:
    frozen = ("vision_embedding.tower.",)
    if not (work / "aligned").exists():
        model = VoRAForCausalLM.from_pretrained(world / "text", dtype=torch.float32)
        torch.manual_seed(seed)
        make_twin(model, SiglipVisionModel.from_pretrained(world / "encoder"))
        processor = _processor(world, system.images)
        _finetune(model, processor, seed, work, "aligned", 1, size, ("llm.", *frozen))
    model = load_llava(work / "aligned")
    tower = SiglipVisionModel.from_pretrained(world / "encoder").config
    processor = _processor(world, twin_images(tower))
    _finetune(model, processor, seed, work, "checkpoint", 2, size, frozen)


def _finetune(
    model: VoRAForCausalLM,
    processor: VoRAProcessor,
    seed: int,
    work: Path,
    name: str,
    stage: int,
    size: Size,
    frozen: tuple[str, ...],
) -> None:
    steps = size.first if stage == 1 else size.second
    recipe = FinetuneRecipe(
        optimisation=_optimisation(size, steps, seed, lr=2e-3 if stage == 1 else 1e-3),
        max_length=192,
        freeze=frozen,
    )
    # The result of a first stage is trained further: nothing of it is rounded.
    dtype = torch.float32 if stage == 1 else torch.bfloat16
    finetune(
        model, processor, Samples(seed, stage), recipe, work / f"log-{stage}", work / name,
        dtype=dtype,
    )  # fmt: skip


def _fresh(system: System, seed: int, world: Path) -> VoRAForCausalLM:
    """The base LLM with a new patch embedder for a system's images."""
    model = VoRAForCausalLM.from_pretrained(world / "text", dtype=torch.float32)
    changes: dict[str, Any] = {
        "image_size": system.image_size,
        "spatial_merge_size": system.merge,
    }
    model.config = VoRAConfig(**(model.config.to_dict() | changes))
    torch.manual_seed(seed)
    model.vision_embedding = VoRAVisionEmbedding(model.config)
    model.vision_embedding.apply(model._init_weights)
    return model


def _processor(world: Path, images: ImageSettings) -> VoRAProcessor:
    base = VoRAProcessor.from_pretrained(world / "text")
    return VoRAProcessor(VoRAImageProcessor(images), base.tokenizer, base.chat_template)


def _optimisation(size: Size, steps: int, seed: int, *, lr: float) -> Optimisation:
    return Optimisation(
        steps=steps,
        batch_size=size.batch,
        lr=lr,
        optimizer="muon",
        weight_decay=0.1,
        schedule="cosine",
        final_lr=0.1,
        betas=(0.9, 0.98),
        warmup_steps=min(20, steps // 2),
        log_every=10,
        save_every=50,
        seed=seed,
    )
