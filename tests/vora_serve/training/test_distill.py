"""Distillation against hand computation, and against what the released code computes."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import CLIPVisionModel

from model_plugin import VoRAForCausalLM
from model_plugin.checkpoint import Checkpoint
from model_plugin.images import patchify
from tests.vora_serve.training import world
from vora_serve.training import Distillation, Teacher
from vora_serve.training.data import Batch, Tokeniser, collate
from vora_serve.training.embedder import init_embedder
from vora_serve.training.step import TrainingModel, unpatchify


def released_batch() -> Batch:
    data = np.load(world.RELEASED / "expected" / "pretrain_batch.npz")
    processor = world.processor()
    grids = torch.tensor([[8, 8], [8, 8]])
    rows, labels, image_ids = [], [], []
    for ids, targets in zip(data["input_ids"], data["labels"], strict=True):
        place = int(np.flatnonzero(ids == -200)[0])
        image = np.full(64, processor.image_token_id)
        rows.append(np.concatenate([ids[:place], image, ids[place + 1 :]]))
        hidden = np.full(64, -100)
        labels.append(np.concatenate([targets[:place], hidden, targets[place + 1 :]]))
        marks = np.full(len(rows[-1]), -1)
        marks[place : place + 64] = 0
        image_ids.append(marks)
    from model_plugin.spans import dense_mask

    marked = torch.from_numpy(np.stack(image_ids))
    return Batch(
        input_ids=torch.from_numpy(np.stack(rows)),
        labels=torch.from_numpy(np.stack(labels)),
        visible=dense_mask(marked, marked)[:, None],
        image_mask=marked >= 0,
        pixel_values=torch.from_numpy(np.concatenate([patchify(p, 14) for p in data["pixels"]])),
        image_grid_hw=grids,
    )


def released_model(alignment: str) -> TrainingModel:
    model = VoRAForCausalLM.from_pretrained(world.RELEASED / "pretrain")
    teacher = Teacher(CLIPVisionModel.from_pretrained(world.RELEASED / "teacher_clip"))
    settings = Distillation.model_validate({"alignment": alignment})
    module = TrainingModel(model, teacher, settings)
    stored = load_file(world.RELEASED / "pretrain" / "model.safetensors")
    assert module.aux_vision is not None
    module.aux_vision.load_state_dict(
        {n.removeprefix("aux_vision."): t for n, t in stored.items() if "aux_vision.aux_layer" in n}
    )
    return module.eval()


def test_the_released_batch_gives_the_released_losses() -> None:
    text = (world.RELEASED / "expected" / "pretrain_batch.json").read_text(encoding="utf-8")
    expected = json.loads(text)["metrics"]
    with torch.no_grad():
        losses = released_model("released")(released_batch())
        paper = released_model("paper")(released_batch())
    assert float(losses["lm"] / losses["targets"]) == pytest.approx(expected["llm_loss"], abs=1e-4)
    for block in (0, 1):
        wanted = expected[f"loss_aux_layer_{block}"]
        assert float(losses[f"aux_{block}"]) == pytest.approx(wanted, abs=1e-4)
        assert abs(float(paper[f"aux_{block}"]) - wanted) > 1e-3, "alignments should differ"


def test_losses_are_cosine_distances_of_block_outputs() -> None:
    model, teacher = world.model().eval(), world.teacher()
    module = TrainingModel(model, teacher, Distillation()).eval()
    tokeniser = Tokeniser(world.processor(), max_length=400)
    batch = collate([tokeniser(world.Colours()[1]), tokeniser(world.Colours()[2])], pad_id=0)
    with torch.no_grad():
        losses = module(batch)
        embeds = model.embed(batch.input_ids, batch.pixel_values, batch.image_grid_hw)
        states = model.llm(
            inputs_embeds=embeds, attention_mask=batch.visible, output_hidden_states=True
        ).hidden_states
        pixels = unpatchify(batch.pixel_values, (8, 8), 14)
        seen = teacher.vision(pixel_values=pixels, output_hidden_states=True).hidden_states
        assert module.aux_vision is not None
        # Hidden state 0 is the embedding's, so that of block 0 is number 1.
        head = module.aux_vision.get_submodule("aux_layer_0")
        guess, target = head(states[1][batch.image_mask]), seen[1].flatten(0, 1)
        by_hand = 1 - functional.cosine_similarity(guess, target, dim=-1).mean()
    assert float(losses["aux_0"]) == pytest.approx(float(by_hand), abs=1e-5)
    logits = model(
        input_ids=batch.input_ids,
        pixel_values=batch.pixel_values,
        image_grid_hw=batch.image_grid_hw,
    ).logits
    whole = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), reduction="sum"
    )
    assert float(losses["lm"]) == pytest.approx(whole.item(), rel=1e-5)


def test_the_teacher_stays_as_it_is_and_starts_the_embedder() -> None:
    model, teacher = world.model(), world.teacher()
    init_embedder(model, teacher)
    own = model.vision_embedding
    theirs = dict(teacher.vision.named_parameters())
    assert torch.equal(own.patchifier.proj.weight, theirs["embeddings.patch_embed.weight"])
    assert torch.equal(own.pos_embed[0], theirs["embeddings.position_embedding.weight"])
    assert not any(p.requires_grad for p in teacher.parameters())
    teacher.train()
    assert not teacher.vision.training


def test_the_fixture_is_a_pretraining_checkpoint() -> None:
    checkpoint = Checkpoint.open(world.RELEASED / "pretrain")
    assert checkpoint.layout == "pretraining"
    assert checkpoint.config.lora_modules == frozenset(checkpoint.lora_modules)
