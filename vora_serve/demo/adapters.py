"""Two vision adapters on the demo's LLM: one for coloured shapes, one for handwritten digits."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from pydantic import Field
from transformers import AutoModelForCausalLM, AutoTokenizer

from model_plugin import VoRAConfig, VoRAForCausalLM, VoRAImageProcessor, VoRAProcessor
from model_plugin.adapter_export import export_adapter, export_llm
from model_plugin.export import merge_checkpoint
from model_plugin.images import ImageSettings
from vora_serve.accuracy import Row, draw_table, summarise
from vora_serve.demo.evaluate import evaluate_items
from vora_serve.demo.recipe import DemoRecipe
from vora_serve.demo.samples import Images
from vora_serve.demo.train import init_projection, train_language_model
from vora_serve.training import pretrain
from vora_serve.training.recipe import PretrainRecipe, Strict, read_recipe
from vora_serve.world.questions import Family
from vora_serve.world.suite import build_suite

ADAPTERS_RECIPE = Path(__file__).with_name("adapters.yaml")
#: What the LLM is called in its folder and in its adapters.
LLM = "llm"


class AdapterRecipe(PretrainRecipe):
    """One adapter's pretraining, and what is asked in it.

    Attributes:
        patch_size, image_size: geometry of its images, pixels; fixed resolution.
        width: of its patch embedding.
        digit_share: part of the images that show a digit.
        shapes: number of shapes in a scene.
        questions: most questions about one image.
        family_weights: how often each family of questions is asked, 1 where it is not said.
        groups: of held-out questions, its own ones.
    """

    patch_size: int = Field(gt=0)
    image_size: int = Field(gt=0)
    width: int = Field(gt=0)
    digit_share: float = Field(ge=0, le=1)
    shapes: int | None = None
    questions: int = Field(default=1, gt=0)
    family_weights: dict[Family, float] = Field(default_factory=dict)
    groups: tuple[str, ...]


class AdaptersRecipe(Strict):
    """All adapters of ``vora-serve demo adapters``.

    Attributes:
        adapters: by name.
        text_steps: steps of the LLM's training on text; the demo's where absent.
        held_out: held-out questions of each group in the report.
    """

    adapters: dict[str, AdapterRecipe]
    text_steps: int | None = Field(default=None, gt=0)
    held_out: int = Field(default=200, gt=0)


def read_adapters_recipe(
    file: Path = ADAPTERS_RECIPE, overrides: list[str] | None = None
) -> AdaptersRecipe:
    """The adapters' recipe, with ``key=value`` overrides.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong.
    """
    return read_recipe(AdaptersRecipe, file, overrides or [])


def train_adapters(demo: DemoRecipe, recipe: AdaptersRecipe, run: Path) -> Path:
    """Train the demo's LLM on text alone, then each adapter on the LLM as it is stored.

    A stage whose result is in the run's folder already is not run again.

    Args:
        demo: the demo's recipe; its LLM and its tokenizer are used.
        recipe: the adapters'.
        run: folder of the run.

    Returns:
        The folder with the LLM, bfloat16, and its adapters, and ``README.md`` with what each
        answers to held-out questions.
    """
    train_language_model(_shortened(demo, recipe.text_steps), run)
    out = run / "adapters"
    llm = out / LLM
    if not llm.exists():
        export_llm(run / "text", llm, dtype=torch.bfloat16)
    for name, adapter in recipe.adapters.items():
        trained = run / f"adapter-{name}"
        if not trained.exists():
            _train(adapter, llm, trained, run / "log" / trained.name)
        if not (out / name).exists():
            export_adapter(trained, out / name, base_name=LLM, dtype=torch.bfloat16)
    _write_report(recipe, out, run)
    return out


def _shortened(demo: DemoRecipe, steps: int | None) -> DemoRecipe:
    if steps is None:
        return demo
    optimisation = demo.text.optimisation.model_copy(update={"steps": steps})
    return demo.model_copy(
        update={"text": demo.text.model_copy(update={"optimisation": optimisation})}
    )


def _train(recipe: AdapterRecipe, llm: Path, trained: Path, log: Path) -> None:
    settings = ImageSettings(
        resolution="fixed",
        patch_size=recipe.patch_size,
        image_size=recipe.image_size,
        resize_edge=recipe.image_size,
    )
    processor = VoRAProcessor(VoRAImageProcessor(settings), AutoTokenizer.from_pretrained(llm))
    plain = AutoModelForCausalLM.from_pretrained(llm, dtype=torch.float32)
    torch.manual_seed(recipe.optimisation.seed)
    config = VoRAConfig.from_llm_config(
        plain.config,
        image_size=recipe.image_size,
        patch_size=recipe.patch_size,
        vision_embedding_intermediate_size=recipe.width,
        position_mode="interpolate",
        image_token_id=processor.image_token_id,
    )
    model = VoRAForCausalLM(config)
    model.llm.load_state_dict(plain.state_dict())
    init_projection(model)
    samples = Images(
        recipe.optimisation.seed,
        digit_share=recipe.digit_share,
        text_share=0.0,
        max_questions=recipe.questions,
        family_weights=recipe.family_weights,
        shapes=recipe.shapes,
    )
    fields = {name: getattr(recipe, name) for name in PretrainRecipe.model_fields}
    pretrain(model, processor, None, samples, PretrainRecipe(**fields), log, trained)


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
        "# One LLM, two vision adapters\n\nTrained from nothing by `vora-serve demo adapters`: the "
        "demo's LLM on text alone, then each adapter on it. "
        f"{recipe.held_out} held-out questions of each group; an answer counts when it is exactly "
        "the expected word. An adapter is expected to answer its own groups only.\n\n"
        "```bash\nvora-serve serve --model llm --vision-adapter shapes=shapes "
        "--vision-adapter digits=digits\n```\n\n" + "\n".join(tables),
        encoding="utf-8",
    )


def _table(name: str, rows: list[Row], own: tuple[str, ...]) -> str:
    said = ", ".join(f"`{group}`" for group in own)
    return f"## {name}\n\nTrained for {said}.\n\n{draw_table(rows)}\n"
