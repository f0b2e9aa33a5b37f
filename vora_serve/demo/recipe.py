"""What one training run of the demo is made of; ``recipe.yaml`` beside this file is in use."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from vora_serve.training.recipe import FinetuneRecipe, Optimisation, PretrainRecipe, read_recipe
from vora_serve.world.questions import Family

RECIPE_FILE = Path(__file__).with_name("recipe.yaml")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LanguageModelRecipe(_Strict):
    """The Qwen2 architecture of the demo's LLM.

    Attributes:
        vocab_size: tokens in all.
        hidden_size, layers, heads, kv_heads, mlp: sizes.
    """

    vocab_size: int = Field(ge=300)
    hidden_size: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    mlp: int = Field(gt=0)


class ImageRecipe(_Strict):
    """Geometry of images.

    Attributes:
        patch_size: P, pixels.
        image_size: side of the fixed square that teacher and pretraining see, pixels.
        min_pixels, max_pixels: bounds of native resolution, from the fine-tune on.
    """

    patch_size: int = Field(gt=0)
    image_size: int = Field(gt=0)
    min_pixels: int = Field(gt=0)
    max_pixels: int = Field(gt=0)


class TeacherRecipe(_Strict):
    """The vision teacher.

    Attributes:
        architecture: ``aimv2``, or ``siglip``, which can also be the encoder of a LLaVA model.
        hidden_size, layers, heads, mlp: sizes.
        images: number of different images that it trains on.
        optimisation: of its training.
    """

    architecture: Literal["aimv2", "siglip"] = "aimv2"
    hidden_size: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    mlp: int = Field(gt=0)
    images: int = Field(gt=0)
    optimisation: Optimisation


class PretrainStage(PretrainRecipe):
    """LoRA pretraining, and what is asked in it.

    Attributes:
        questions: most questions about one image; distillation learns from images, so fewer
            words make for more images in the same time.
        family_weights: how often each family of questions is asked, 1 where it is not said.
    """

    questions: int = Field(default=4, gt=0)
    family_weights: dict[Family, float] = Field(default_factory=dict)


class FinetuneRound(FinetuneRecipe):
    """One round of fine-tuning, and what is asked in it.

    Attributes:
        family_weights: how often each family of questions is asked, 1 where it is not said.
    """

    family_weights: dict[Family, float] = Field(default_factory=dict)


class DemoRecipe(_Strict):
    """All stages of ``vora-serve demo train``.

    Attributes:
        seed: of images, questions and tokenizer.
        language_model, image, teacher: what is trained.
        text: the LLM's training on text alone.
        pretrain: LoRA pretraining with distillation.
        finetune: rounds at native resolution, each with samples and a schedule of its own.
        held_out: held-out questions of each family in the report.
    """

    seed: int
    language_model: LanguageModelRecipe
    image: ImageRecipe
    teacher: TeacherRecipe
    text: FinetuneRecipe
    pretrain: PretrainStage
    finetune: tuple[FinetuneRound, ...] = Field(min_length=1)
    held_out: int = Field(default=300, gt=0)


def read_demo_recipe(file: Path = RECIPE_FILE, overrides: list[str] | None = None) -> DemoRecipe:
    """The demo's recipe, with ``key=value`` overrides.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong.
    """
    return read_recipe(DemoRecipe, file, overrides or [])
