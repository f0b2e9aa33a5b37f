"""The whole of the demo's training: tokenizer, LLM, teacher, pretrain, merge, fine-tune, report."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from transformers import Aimv2VisionModel

from model_plugin import VoRAConfig, VoRAForCausalLM, VoRAImageProcessor, VoRAProcessor
from model_plugin.export import merge_checkpoint
from model_plugin.images import ImageSettings
from vora_serve.demo.language import llm_config, train_tokenizer
from vora_serve.demo.recipe import DemoRecipe
from vora_serve.demo.report import write_report
from vora_serve.demo.samples import Images, Texts
from vora_serve.demo.stage import run_shared_stage, run_stages
from vora_serve.demo.teacher import train_teacher
from vora_serve.training import Teacher, finetune, pretrain

#: Stages before the rounds of fine-tuning, ``finetune-1`` and so on. Each leaves a folder of its
#: name in the run's folder.
STAGES = ("text", "teacher", "pretrain", "merged")


def train_demo(recipe: DemoRecipe, run: Path, processes: int = 1) -> Path:
    """Train the demo model from nothing.

    A stage whose result is in the run's folder already is not run again, and a stage that was cut
    off goes on from its last saved state.

    Args:
        recipe: sizes, steps, seeds.
        processes: how many share each stage of VoRA itself; with more than one, the LLM and the
            teacher train at the same time.
        run: folder of the run: ``times.json``, a folder per stage, and ``log/STAGE/metrics.jsonl``.

    Returns:
        The folder of the exported checkpoint, bfloat16, in the released layout, report included.

    Raises:
        VoRAError: the recipe's parts do not fit together.
    """
    with _timed(run, "all"):
        if processes > 1:
            run_stages(["text", "teacher"], recipe, run)
        train_language_model(recipe, run)
        train_vision_teacher(recipe, run)
        if processes > 1:
            run_shared_stage("pretrain", recipe, run, processes)
        pretrain_fixed(recipe, run)
        merge(run)
        for number in range(1, len(recipe.finetune) + 1):
            if processes > 1:
                run_shared_stage(f"finetune-{number}", recipe, run, processes)
            out = finetune_native(recipe, run, number)
    write_report(recipe, run, out)
    return out


def image_settings(recipe: DemoRecipe) -> tuple[ImageSettings, ImageSettings]:
    """Fixed resolution, for teacher and pretraining; native resolution, from the fine-tune on."""
    image = recipe.image
    fixed = ImageSettings(
        resolution="fixed",
        patch_size=image.patch_size,
        image_size=image.image_size,
        resize_edge=image.image_size,
    )
    native = ImageSettings(
        resolution="native",
        patch_size=image.patch_size,
        image_size=image.image_size,
        min_pixels=image.min_pixels,
        max_pixels=image.max_pixels,
    )
    return fixed, native


def make_processor(recipe: DemoRecipe, settings: ImageSettings) -> VoRAProcessor:
    """The demo's tokenizer, trained anew (seconds; always the same), with image settings."""
    tokenizer = train_tokenizer(recipe.seed, recipe.language_model.vocab_size)
    return VoRAProcessor(VoRAImageProcessor(settings), tokenizer)


def train_language_model(recipe: DemoRecipe, run: Path) -> None:
    """Train the LLM on text alone; a VoRA checkpoint whose embedder is untrained: ``text/``."""
    if (run / "text").exists():
        return
    with _timed(run, "text"):
        processor = make_processor(recipe, image_settings(recipe)[0])
        torch.manual_seed(recipe.seed)
        model = VoRAForCausalLM(_model_config(recipe, processor))
        log = run / "log" / "text"
        finetune(model, processor, Texts(recipe.seed), recipe.text, log, run / "text")


def train_vision_teacher(recipe: DemoRecipe, run: Path) -> None:
    """Train the teacher: ``teacher/``, and its accuracies in ``teacher.json``."""
    if (run / "teacher").exists():
        return
    with _timed(run, "teacher"):
        fixed, _ = image_settings(recipe)
        vision, accuracies = train_teacher(recipe.teacher, fixed, run / "log" / "teacher")
        (run / "teacher.json").write_text(json.dumps(accuracies, indent=2) + "\n")
        vision.save_pretrained(run / ".teacher")
        (run / ".teacher").rename(run / "teacher")


def pretrain_fixed(recipe: DemoRecipe, run: Path) -> None:
    """LoRA pretraining with distillation at fixed resolution: ``pretrain/``."""
    if not (run / "pretrain").exists():
        with _timed(run, "pretrain"):
            model = VoRAForCausalLM.from_pretrained(run / "text")
            init_projection(model)
            pretrain(
                model,
                make_processor(recipe, image_settings(recipe)[0]),
                Teacher(Aimv2VisionModel.from_pretrained(run / "teacher")),
                Images(
                    recipe.pretrain.optimisation.seed,
                    max_questions=recipe.pretrain.questions,
                    family_weights=recipe.pretrain.family_weights,
                ),
                recipe.pretrain,
                run / "log" / "pretrain",
                run / "pretrain",
            )


def merge(run: Path) -> None:
    """Merge the LoRA factors of ``pretrain/``: ``merged/``."""
    if not (run / "merged").exists():
        merge_checkpoint(run / "pretrain", run / "merged")


def finetune_native(recipe: DemoRecipe, run: Path, number: int) -> Path:
    """One round of fine-tuning at native resolution; returns its folder, ``finetune-NUMBER/``.

    Args:
        recipe: of the whole run.
        run: its folder.
        number: of the round, from 1; the first goes on from ``merged/``.
    """
    name = f"finetune-{number}"
    before = f"finetune-{number - 1}" if number > 1 else "merged"
    this = recipe.finetune[number - 1]
    if not (run / name).exists():
        with _timed(run, name):
            finetune(
                VoRAForCausalLM.from_pretrained(run / before, dtype=torch.float32),
                make_processor(recipe, image_settings(recipe)[1]),
                Images(this.optimisation.seed, text_share=0.05, family_weights=this.family_weights),
                this,
                run / "log" / name,
                run / name,
                dtype=torch.bfloat16,
            )
    return run / name


def init_projection(model: VoRAForCausalLM) -> None:
    """Start the embedder's output projection as half the identity.

    The teacher's first block then meets the same features as the LLM's, which makes imitating it
    easy; nothing is gained where the widths differ, so there the random start stays.
    """
    weight = model.vision_embedding.out_proj.weight
    if weight.shape[0] == weight.shape[1]:
        with torch.no_grad():
            nn.init.eye_(weight).mul_(0.5)


def clean(run: Path) -> None:
    """Remove what an earlier run left in its folder."""
    for folder in (*(run / name for name in (*STAGES, "log", ".teacher")), *run.glob("finetune-*")):
        shutil.rmtree(folder, ignore_errors=True)
    for name in ("times.json", "teacher.json"):
        (run / name).unlink(missing_ok=True)


def _model_config(recipe: DemoRecipe, processor: VoRAProcessor) -> VoRAConfig:
    sizes = recipe.language_model.model_dump()
    return VoRAConfig.from_llm_config(
        llm_config(**sizes),
        image_size=recipe.image.image_size,
        patch_size=recipe.image.patch_size,
        vision_embedding_intermediate_size=recipe.teacher.hidden_size,
        position_mode="interpolate",
        image_token_id=processor.image_token_id,
    )


@contextmanager
def _timed(run: Path, stage: str) -> Iterator[None]:
    """Add a stage's seconds to ``times.json``; a run that was cut off counts all of its parts."""
    start = time.perf_counter()
    try:
        yield
    finally:
        if _is_main_process():
            file = run / "times.json"
            times = json.loads(file.read_text()) if file.exists() else {}
            times[stage] = round(times.get(stage, 0.0) + time.perf_counter() - start, 1)
            file.write_text(json.dumps(times, indent=2) + "\n")


def _is_main_process() -> bool:
    """Whether this is the only process of a run, or the one of them that writes."""
    return os.environ.get("RANK", "0") == "0"
