"""Pretraining, merging and fine-tuning on a model that trains in seconds."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from model_plugin import CheckpointError, ConfigError, VoRAForCausalLM
from model_plugin.export import merge_checkpoint
from tests.vora_serve.training import world
from vora_serve.training import (
    Distillation,
    FinetuneRecipe,
    Optimisation,
    PretrainRecipe,
    Sample,
    finetune,
    pretrain,
)
from vora_serve.training.lora import attach_lora, check_trainable


def recipe(steps: int = 12, **changes: object) -> PretrainRecipe:
    settings: dict[str, object] = {
        "steps": steps,
        "batch_size": 6,
        "micro_batch_size": 3,
        "lr": 3e-3,
        "log_every": 4,
    }
    return PretrainRecipe(
        optimisation=Optimisation.model_validate(settings | changes), lora_rank=8, max_length=200
    )


def losses(run: Path, key: str = "lm") -> list[float]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)[key] for line in lines]


def trained(run: Path, **changes: object) -> VoRAForCausalLM:
    model = world.model()
    pretrain(
        model,
        world.processor(),
        world.teacher(),
        world.Colours(),
        recipe(**changes),  # type: ignore[arg-type]
        run,
        run / "pretrained",
        overwrite=True,
    )
    return model


def test_from_pretraining_to_a_served_layout(tmp_path: Path) -> None:
    before = {n: p.clone() for n, p in world.model().llm.named_parameters()}
    model = trained(tmp_path)
    for name, parameter in model.llm.named_parameters():
        if "lora_" not in name:
            original = before[name.replace(".base_layer.", ".")]
            assert torch.equal(parameter, original), f"{name} should be frozen"
    for key in ("lm", "distill", "aux_0", "aux_1"):
        falling = losses(tmp_path, key)
        assert falling[-1] < falling[0]

    merged = merge_checkpoint(tmp_path / "pretrained", tmp_path / "merged")
    plain = VoRAForCausalLM.from_pretrained(merged)
    assert not any(isinstance(m, nn.Module) and "lora" in n for n, m in plain.named_modules())
    proc = world.processor()
    sample = world.Colours()[1]
    text = proc.apply_chat_template(sample.messages[:1], add_generation_prompt=True)
    inputs = proc(text=text, images=list(sample.images), return_tensors="pt")
    with torch.no_grad():
        unmerged_logits = model.eval()(**inputs).logits
        merged_logits = plain.eval()(**inputs).logits
        unseeing = world.model().eval()(**inputs).logits
    torch.testing.assert_close(merged_logits, unmerged_logits, atol=1e-5, rtol=1e-5)
    assert (unseeing - merged_logits).abs().max() > 1e-2, "training should have changed something"

    settings = Optimisation(steps=12, batch_size=6, lr=1e-3, log_every=4, optimizer="muon")
    final = finetune(
        plain,
        proc,
        world.Colours(),
        FinetuneRecipe(optimisation=settings, max_length=200),
        tmp_path,
        tmp_path / "final",
    )
    reloaded = VoRAForCausalLM.from_pretrained(final)
    first = VoRAForCausalLM.from_pretrained(merged)
    changed = dict(reloaded.named_parameters())
    still = [n for n, p in first.named_parameters() if torch.equal(p, changed[n])]
    assert not still, f"fine-tuning should train everything, not leave {still[:3]}"


def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(tmp_path / "whole", save_every=4)

    class CutOff(Exception):
        pass

    class Stops(world.Colours):
        def __getitem__(self, index: int) -> Sample:
            if index == 6 * 7:
                raise CutOff
            return super().__getitem__(index)

    run = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(world, "Colours", Stops)
        with pytest.raises(CutOff):
            trained(run, save_every=4)
    assert (run / "state" / "state.pt").exists()
    torch.manual_seed(12345)
    resumed = trained(run, save_every=4)
    assert losses(run) == losses(tmp_path / "whole")
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not (run / "state").exists()


def test_a_state_of_another_recipe_is_refused(tmp_path: Path) -> None:
    class Stops(world.Colours):
        def __getitem__(self, index: int) -> Sample:
            if index >= 30:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    with pytest.raises(KeyboardInterrupt):
        pretrain(
            world.model(),
            world.processor(),
            world.teacher(),
            Stops(),
            recipe(save_every=4),
            tmp_path,
            tmp_path / "out",
        )
    with pytest.raises(CheckpointError, match="another recipe"):
        trained(tmp_path, save_every=4, lr=1e-4)


def test_micro_batches_give_the_same_losses(tmp_path: Path) -> None:
    trained(tmp_path / "a", micro_batch_size=6)
    trained(tmp_path / "b", micro_batch_size=2)
    assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "b"), abs=2e-4)
    assert losses(tmp_path / "a", "distill") == pytest.approx(
        losses(tmp_path / "b", "distill"), abs=2e-4
    )


def test_what_should_be_frozen_is_checked() -> None:
    model = world.model()
    attach_lora(model, rank=4, n_vit=2)
    allowed = ("lora_", "vision_embedding")
    counts = check_trainable(model, allowed)
    assert counts["lora_"] > 0
    assert counts["frozen"] > counts["lora_"]
    names = [n for n, p in model.named_parameters() if "lora_" in n]
    assert len(names) == 2 * 7 * 2, "seven layers of the first two blocks, two factors each"
    model.llm.model.norm.weight.requires_grad_(True)
    with pytest.raises(ConfigError, match=r"norm\.weight would train"):
        check_trainable(model, allowed)


@pytest.mark.parametrize(
    ("layers", "changes", "sentence"),
    [
        (4, {}, "teacher has 4 blocks, more than the LLM's 3"),
        (2, {"n_vit": 9}, "asked for 9 blocks"),
    ],
)
def test_what_does_not_fit_together_is_said_first(
    tmp_path: Path, layers: int, changes: dict, sentence: str
) -> None:
    wrong = recipe().model_copy(update=changes)
    with pytest.raises(ConfigError, match=sentence):
        pretrain(
            world.model(),
            world.processor(),
            world.teacher(layers=layers),
            world.Colours(),
            wrong,
            tmp_path,
            tmp_path / "out",
        )


def test_distillation_without_a_teacher_is_refused(tmp_path: Path) -> None:
    wrong = recipe().model_copy(update={"distillation": Distillation(mode="last-block")})
    with pytest.raises(ConfigError, match="there is no teacher"):
        pretrain(
            world.model(),
            world.processor(),
            None,
            world.Colours(),
            wrong,
            tmp_path,
            tmp_path / "out",
        )
