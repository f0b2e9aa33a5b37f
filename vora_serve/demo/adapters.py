"""Two vision adapters on the demo's LLM: one for coloured shapes, one for handwritten digits."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from pydantic import Field
from torch.nn.functional import interpolate

from model_plugin import VoRAConfig, VoRAForCausalLM, VoRAImageProcessor, VoRAProcessor
from model_plugin.adapter_export import export_adapter, export_llm
from model_plugin.export import merge_checkpoint
from model_plugin.images import ImageSettings
from vora_serve.accuracy import Row, draw_table, summarise
from vora_serve.demo.evaluate import evaluate_items
from vora_serve.demo.samples import Images
from vora_serve.training import pretrain
from vora_serve.training.recipe import PretrainRecipe, Strict, read_recipe
from vora_serve.world.questions import Family
from vora_serve.world.suite import build_suite

ADAPTERS_RECIPE = Path(__file__).with_name("adapters.yaml")
#: The demo model, whose LLM gets the adapters.
CHECKPOINT = Path(__file__).with_name("checkpoint")
#: The adapters as trained, checked in: ``llm``, ``shapes`` and ``digits``.
SPECIALISTS = Path(__file__).with_name("specialists")
#: What the LLM is called in its folder and in its adapters.
LLM = "llm"


class AdapterRecipe(PretrainRecipe):
    """One adapter's pretraining, and what is asked in it.

    Attributes:
        patch_size, image_size: geometry of its images, pixels; fixed resolution.
        digit_share: part of the images that show a digit.
        shapes: number of shapes in a scene.
        questions: most questions about one image.
        family_weights: how often each family of questions is asked, 1 where it is not said.
        groups: of held-out questions, its own ones.
    """

    patch_size: int = Field(gt=0)
    image_size: int = Field(gt=0)
    digit_share: float = Field(ge=0, le=1)
    shapes: int | None = None
    questions: int = Field(default=1, gt=0)
    family_weights: dict[Family, float] = Field(default_factory=dict)
    groups: tuple[str, ...]


class AdaptersRecipe(Strict):
    """All adapters of ``vora-serve demo adapters``.

    Attributes:
        adapters: by name.
        held_out: held-out questions of each group in the report.
    """

    adapters: dict[str, AdapterRecipe]
    held_out: int = Field(default=200, gt=0)


def read_adapters_recipe(
    file: Path = ADAPTERS_RECIPE, overrides: list[str] | None = None
) -> AdaptersRecipe:
    """The adapters' recipe, with ``key=value`` overrides.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong.
    """
    return read_recipe(AdaptersRecipe, file, overrides or [])


def train_adapters(recipe: AdaptersRecipe, run: Path, checkpoint: Path = CHECKPOINT) -> Path:
    """Train each adapter on the LLM of the demo model.

    A stage whose result is in the run's folder already is not run again.

    Args:
        recipe: the adapters'.
        run: folder of the run.
        checkpoint: the demo model; adapters start from its embedder.

    Returns:
        The folder with the LLM, its adapters, bfloat16, and ``README.md`` with what each answers
        to held-out questions.
    """
    out = run / "adapters"
    llm = out / LLM
    if not llm.exists():
        export_llm(checkpoint, llm, dtype=torch.bfloat16)
    for name, adapter in recipe.adapters.items():
        trained = run / f"adapter-{name}"
        if not trained.exists():
            _train(adapter, checkpoint, trained, run / "log" / trained.name)
        if not (out / name).exists():
            export_adapter(trained, out / name, base_name=LLM, dtype=torch.bfloat16)
    _write_report(recipe, out, run)
    return out


def _train(recipe: AdapterRecipe, checkpoint: Path, trained: Path, log: Path) -> None:
    settings = ImageSettings(
        resolution="fixed",
        patch_size=recipe.patch_size,
        image_size=recipe.image_size,
        resize_edge=recipe.image_size,
    )
    demo = VoRAForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    tokenizer = VoRAProcessor.from_pretrained(checkpoint).tokenizer
    geometry = {"image_size": recipe.image_size, "patch_size": recipe.patch_size}
    torch.manual_seed(recipe.optimisation.seed)
    model = VoRAForCausalLM(VoRAConfig(**demo.config.to_dict() | geometry))
    model.load_state_dict(
        demo.state_dict() | resized_embedder(demo, recipe.patch_size, model.config.grid_size)
    )
    samples = Images(
        recipe.optimisation.seed,
        digit_share=recipe.digit_share,
        text_share=0.0,
        max_questions=recipe.questions,
        family_weights=recipe.family_weights,
        shapes=recipe.shapes,
    )
    fields = {name: getattr(recipe, name) for name in PretrainRecipe.model_fields}
    processor = VoRAProcessor(VoRAImageProcessor(settings), tokenizer)
    pretrain(model, processor, None, samples, PretrainRecipe(**fields), log, trained)


def resized_embedder(model: VoRAForCausalLM, patch: int, grid: int) -> dict[str, torch.Tensor]:
    """What of an embedder depends on its geometry, for another one.

    Args:
        model: the embedder's.
        patch: side of the new patches, pixels.
        grid: side of the new grid of learned positions, patches.

    Returns:
        Projection (C, 3, patch, patch) and positions (1, grid * grid, C), by name.
    """
    proj, positions = "vision_embedding.patchifier.proj.weight", "vision_embedding.pos_embed"
    state = model.state_dict()
    before = state[proj].shape[-1]
    # A patch that shows the same with fewer pixels keeps its projection: each pixel counts more.
    resized = interpolate(state[proj], size=(patch, patch), mode="bilinear", antialias=True)
    learned = model.vision_embedding.positions(grid, grid)
    return {proj: resized * (before / patch) ** 2, positions: learned[None]}


def _write_report(recipe: AdaptersRecipe, out: Path, run: Path) -> None:
    """What each adapter answers to every group of held-out questions, its own and the others'."""
    items = build_suite(recipe.held_out)
    groups = list(dict.fromkeys(g for a in recipe.adapters.values() for g in a.groups))
    asked = [item for item in items if item.group in groups]
    tables, results = [], {}
    for name in recipe.adapters:
        merged = merge_checkpoint(
            out / name, run / f"merged-{name}", base=out / LLM, overwrite=True
        )
        model = VoRAForCausalLM.from_pretrained(merged, dtype=torch.float32)
        processor = VoRAProcessor.from_pretrained(merged)
        right = evaluate_items(model, processor, asked)
        blank = evaluate_items(model, processor, [item.blank() for item in asked])
        rows = summarise([(item.group, item.chance) for item in asked], right, blank)
        results[name] = {row.group: row.accuracy for row in rows}
        tables.append(_table(name, rows, recipe.adapters[name].groups))
    (out / "report.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (out / "README.md").write_text(
        "# One LLM, two vision adapters\n\nTrained by `vora-serve demo adapters` on the demo "
        "model's LLM, each from the demo's embedder, resized to its own patches. "
        f"{recipe.held_out} held-out questions of each group; an answer counts when it is exactly "
        "the expected word. An adapter is expected to answer its own groups only.\n\n"
        "```bash\nvora-serve serve --model llm --vision-adapter shapes=shapes "
        "--vision-adapter digits=digits\n```\n\n" + "\n".join(tables),
        encoding="utf-8",
    )


def _table(name: str, rows: list[Row], own: tuple[str, ...]) -> str:
    said = ", ".join(f"`{group}`" for group in own)
    return f"## {name}\n\nTrained for {said}.\n\n{draw_table(rows)}\n"
