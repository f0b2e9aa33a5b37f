"""Packed sequences give every token the loss that it has alone; the attention rules."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask

from tests.vora_serve.training import world
from vora_serve.training import Distillation, Sample
from vora_serve.training.attention import DOCUMENTS, Rule, dense_attention, mask_mod
from vora_serve.training.data import IGNORE, Batch, Tokeniser, collate
from vora_serve.training.packing import pack, padding_share, plan_packs
from vora_serve.training.step import StepOptions, TrainingModel


def samples(count: int = 5) -> list[Sample]:
    return [world.Colours()[index] for index in range(count)]


def batches() -> tuple[Batch, Batch]:
    """Five samples unpacked, and packed into one sequence."""
    tokeniser = Tokeniser(world.processor(), max_length=400)
    examples = [tokeniser(sample) for sample in samples()]
    length = sum(len(e.input_ids) for e in examples) + 7
    return collate(examples, 0), collate([pack(examples, length, 0)], 0)


def test_packed_and_unpacked_losses_are_equal() -> None:
    model, teacher = world.model().eval(), world.teacher()
    module = TrainingModel(model, teacher, Distillation()).eval()
    apart, packed = batches()
    with torch.no_grad():
        one, other = module(apart), module(packed)
    assert int(one["targets"]) == int(other["targets"])
    for key in ("lm", "aux_0", "aux_1"):
        assert float(one[key]) == pytest.approx(float(other[key]), rel=1e-5), key
    assert padding_share([packed]) < padding_share([apart])


def test_boundaries_matter() -> None:
    """The control: without them, the losses differ. (Positions begin anew, too.)"""
    module = TrainingModel(world.model(), world.teacher(), Distillation()).eval()
    apart, packed = batches()
    assert packed.position_ids is not None
    assert packed.document_ids is not None
    for document in range(5):
        own = packed.position_ids[packed.document_ids == document]
        assert torch.equal(own, torch.arange(len(own)))
    packed.document_ids = packed.visible = None
    with torch.no_grad():
        difference = abs(float(module(apart)["lm"]) - float(module(packed)["lm"]))
    assert difference > 1e-3


def test_gradients_are_equal_too() -> None:
    gradients = []
    for batch in batches():
        module = TrainingModel(world.model(), world.teacher(), Distillation())
        losses = module(batch)
        (losses["lm"] + losses["aux_0"] * losses["image_tokens"]).backward()
        gradients.append({n: p.grad for n, p in module.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("rule", ["bidirectional", "causal", "global"])
@pytest.mark.parametrize("which", [0, 1])
def test_sample_by_sample_is_the_same(rule: Rule, which: int) -> None:
    found = []
    for implementation in ("sdpa", DOCUMENTS):
        model = world.model()
        model.llm.config._attn_implementation = implementation
        options = StepOptions(attention=rule)
        torch.manual_seed(3)
        module = TrainingModel(model, world.teacher(), Distillation(), options)
        losses = module(batches()[which])
        (losses["lm"] + losses["aux_1"]).backward()
        gradient = model.llm.model.layers[0].self_attn.k_proj.weight.grad
        found.append((losses["lm"].detach(), losses["aux_1"].detach(), gradient))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-4)


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60), capacity=st.integers(50, 120))
@settings(deadline=None, max_examples=60)
def test_plans_hold_every_sample_once_and_fit(lengths: list[int], capacity: int) -> None:
    packs = plan_packs(lengths, capacity)
    assert sorted(i for p in packs for i in p) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in p) <= capacity for p in packs)
    # No two sequences could have been one.
    sizes = sorted(sum(lengths[i] for i in p) for p in packs)
    assert len(sizes) < 2 or sizes[0] + sizes[1] > capacity


@pytest.mark.parametrize("rule", ["bidirectional", "global", "causal"])
@pytest.mark.parametrize("which", [0, 1])
def test_each_rule_by_its_definition(rule: Rule, which: int) -> None:
    batch = batches()[which]
    tokeniser = Tokeniser(world.processor(), max_length=400)
    two = Sample(
        [
            {"role": "user", "content": [{"type": "image"}, {"type": "image"}]},
            {"role": "assistant", "content": "x"},
        ],
        world.Colours()[1].images + world.Colours()[2].images,  # type: ignore[operator]
    )
    if which == 0:
        batch = collate([tokeniser(two), tokeniser(world.Colours()[1])], 0)
    dense = dense_attention(batch, rule)[:, 0]
    documents = batch.document_ids
    assert batch.image_ids is not None
    rows, length = batch.input_ids.shape
    ids, images = batch.image_ids.tolist(), batch.image_mask.tolist()
    for row in range(rows):
        for query in range(0, length, 7):
            for key in range(0, length, 5):
                together = {
                    "bidirectional": ids[row][query] == ids[row][key] >= 0,
                    "global": images[row][query] and images[row][key],
                    "causal": False,
                }[rule]
                same = documents is None or documents[row][query] == documents[row][key]
                expected = bool(same) and (key <= query or together)
                assert bool(dense[row, query, key]) == expected
    blocks = create_mask(mask_mod(batch, rule), rows, None, length, length, device="cpu")
    assert torch.equal(blocks[:, 0], dense), "FlexAttention's rule should be the same"


def test_rules_change_what_is_learned() -> None:
    apart, _ = batches()
    losses = {}
    for rule in ("bidirectional", "causal"):
        options = StepOptions(attention=rule)  # type: ignore[arg-type]
        module = TrainingModel(world.model(), None, Distillation(mode="none"), options).eval()
        with torch.no_grad():
            losses[rule] = float(module(apart)["lm"])
    assert abs(losses["bidirectional"] - losses["causal"]) > 1e-3


def test_a_pack_never_learns_a_sample_from_the_one_before() -> None:
    tokeniser = Tokeniser(world.processor(), max_length=400)
    example = tokeniser(world.Colours()[0])
    example.labels[0] = 5
    packed = pack([example, example], 200, 0)
    begins = len(example.input_ids)
    assert packed.labels[0] == packed.labels[begins] == IGNORE
    assert packed.document_ids is not None
    assert packed.document_ids[-1] == -1


def test_chunked_loss_and_checkpointing_change_nothing() -> None:
    apart, _ = batches()
    found = []
    for chunk, checkpointing in ((None, False), (3, False), (3, True)):
        model = world.model()
        if checkpointing:
            model.llm.gradient_checkpointing_enable({"use_reentrant": False})
        options = StepOptions(loss_chunk=chunk)
        module = TrainingModel(model, world.teacher(), Distillation(), options).train()
        losses = module(apart)
        (losses["lm"] + losses["aux_0"] + losses["aux_1"]).backward()
        grad = model.llm.model.layers[0].self_attn.q_proj.weight.grad
        found.append((losses["lm"].detach(), losses["aux_1"].detach(), grad))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)
