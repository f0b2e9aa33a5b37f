"""What a training command takes: a stage's recipe, and its model, images and data."""

from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import Field

from model_plugin import ConfigError
from vora_serve.training.data_recipe import Data, Source
from vora_serve.training.recipe import FinetuneRecipe, PretrainRecipe, Strict

Triple = tuple[float, float, float]


class ModelSettings(Strict):
    """The model that a stage starts from.

    Attributes:
        path: for pretraining, an LLM as transformers saves it (Qwen2, Llama, Qwen3), or a VoRA
            checkpoint; for fine-tuning, a merged VoRA checkpoint. A folder or a hub id.
        dtype: of frozen weights; what trains is float32.
        attn_implementation: as in :mod:`vora_serve.training.attention`; ``flex_attention`` on CUDA
            and ``vora_documents`` elsewhere when absent.
        spatial_merge_size: m; m x m patches become one token (a new model only).
        position_mode: ``interpolate`` or ``released`` (a new model only).
        chat_template: a Jinja file, or ``chatml`` for the released checkpoints'; the model's own
            when absent. It is used as it is.
    """

    path: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    attn_implementation: Literal["sdpa", "vora_documents", "flex_attention", "eager"] | None = None
    spatial_merge_size: int = Field(default=1, gt=0)
    position_mode: Literal["interpolate", "released"] = "interpolate"
    chat_template: str | None = None


class Images(Strict):
    """Geometry and normalisation of images.

    Attributes:
        resolution: ``fixed``, or ``native`` (fine-tuning only).
        image_size: side of the fixed square, and of the square that positions are learned on.
        patch_size: P, pixels.
        min_pixels, max_pixels: bounds of native resolution.
        mean, std: per channel; the teacher's when absent, CLIP's without a teacher.
    """

    resolution: Literal["fixed", "native"] = "fixed"
    image_size: int = Field(default=448, gt=0)
    patch_size: int = Field(default=14, gt=0)
    min_pixels: int = Field(default=56 * 56, gt=0)
    max_pixels: int = Field(default=14 * 14 * 50 * 80, gt=0)
    mean: Triple | None = None
    std: Triple | None = None


class TeacherSettings(Strict):
    """The vision teacher: an AIMv2, CLIP, SigLIP or DINOv2 as transformers saves it.

    Attributes:
        path: a folder or a hub id.
        dtype: that it computes in.
        image_size: ``model`` when it sees the model's own pixels; ``own`` when images are resized
            to the size that it was trained at and its states interpolated to the LLM's tokens.
        cache: folder that keeps its states by image; none when absent.
        cache_gb: most gigabytes kept there.
    """

    path: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    image_size: Literal["model", "own"] = "model"
    cache: str | None = None
    cache_gb: float = Field(default=10.0, gt=0)


class HeldOut(Strict):
    """Evaluation during training: the loss on samples that are never trained on.

    Attributes:
        sources: where they come from.
        every: in steps.
        samples: how many.
    """

    sources: tuple[Source, ...] = Field(min_length=1)
    every: int = Field(gt=0)
    samples: int = Field(default=256, gt=0)


class PretrainRun(PretrainRecipe):
    """``vora-serve pretrain``.

    Attributes:
        model, teacher, images, data: what is trained, on what.
        held_out: evaluation during training.
        run: folder of metrics and states.
        out: the pretraining checkpoint.
        embedder_width: C; the teacher's width when absent.
    """

    model: ModelSettings
    teacher: TeacherSettings | None = None
    images: Images = Images()
    data: Data
    held_out: HeldOut | None = None
    run: str
    out: str
    embedder_width: int | None = Field(default=None, gt=0)


class EncoderSettings(Strict):
    """A vision tower that sees for the LLM, as in LLaVA-1.5, instead of a patch embedder.

    Attributes:
        path: a CLIP or SigLIP as transformers saves it; a folder or a hub id.
    """

    path: str


class FinetuneRun(FinetuneRecipe):
    """``vora-serve finetune``.

    Attributes:
        model, data: what is trained, on what. With ``encoder``, the model is an LLM or a merged
            VoRA checkpoint whose LLM is taken. A LLaVA checkpoint is trained further.
        encoder: train LLaVA's architecture instead: this tower, a projector and the same LLM.
        images: geometry of images; the checkpoint's own when absent.
        held_out: evaluation during training.
        run: folder of metrics and states.
        out: the fine-tuned checkpoint.
        out_dtype: of its weights.
    """

    model: ModelSettings
    encoder: EncoderSettings | None = None
    images: Images | None = None
    data: Data
    held_out: HeldOut | None = None
    run: str
    out: str
    out_dtype: Literal["float32", "bfloat16"] = "bfloat16"


class MergeRun(Strict):
    """``vora-serve merge``.

    Attributes:
        source: a pretraining checkpoint, ours or a released one; or a vision adapter.
        base: the LLM that a vision adapter was trained on, as transformers saves it.
        out: the merged checkpoint.
        dtype: of its weights; the source's when absent.
        shard_gb: gigabytes of one weight file.
        verify: run merged and unmerged model on a probe, block by block, and compare.
    """

    source: str
    base: str | None = None
    out: str
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    shard_gb: float = Field(default=1.0, gt=0)
    verify: bool = True


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path, or the name of one that comes with the package.

    Raises:
        ConfigError: there is neither.
    """
    file = Path(name)
    if file.is_file():
        return file
    shipped = Path(str(resources.files("vora_serve.training"))) / "recipes"
    known = {f.stem: f for f in sorted(shipped.rglob("*.yaml"))}
    if name in known:
        return known[name]
    raise ConfigError(
        f"There is no recipe {name}: neither a file nor one of those that come along "
        f"({', '.join(known)})."
    )
