"""The analytic model: against the files, against torch's own count, against the claim."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from loadtest.checkpoints import build_llava, build_qwen2_5_vl, build_vora
from loadtest.cost.checkpoint import read_checkpoint
from loadtest.cost.model import Decoder, ModelCost, Tower
from loadtest.shapes import SHAPES, Shape, shape
from vora_core.errors import CheckpointError

TINY = shape("tiny")
SIDE = (224, 224)


def on_paper(name: str, baseline: bool, merge: int = 1) -> ModelCost:
    """A checkpoint of a large shape, without writing it."""
    known: Shape = SHAPES[name]
    llm, tower = known.llm, known.tower
    decoder = Decoder(
        llm.hidden, llm.layers, llm.heads, llm.kv_heads, llm.hidden // llm.heads,
        llm.intermediate, llm.vocab, llm.tied,
    )  # fmt: skip
    connector = tower.hidden * llm.hidden + llm.hidden**2
    return ModelCost(
        "llava" if baseline else "vora",
        decoder,
        Tower(tower.hidden, tower.layers, tower.intermediate, 14, False, connector)
        if baseline
        else None,
        3 * 14**2 * 1536,
        448,
        14,
        merge,
        not baseline,
        0,
        0,
        True,
    )


def test_read_from_files(tmp_path: Path) -> None:
    for build, name, image in (
        (build_vora, "vora", 256),
        (build_llava, "llava", 256),
        (build_qwen2_5_vl, "qwen", 64),
    ):
        count = build(tmp_path / name, TINY)
        found = read_checkpoint(tmp_path / name)
        assert found.params == count
        assert abs(found.weight_bytes - 2 * count) < 60_000  # headers
        assert found.image_tokens(SIDE) == image
        assert found.random
        assert ModelCost.from_json(found.to_json()) == found
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        read_checkpoint(tmp_path)


def test_flops_are_what_torch_counts() -> None:
    """Linear layers exactly; torch counts attention over all pairs, so that part is compared so."""
    llm = TINY.llm
    config = Qwen2Config(
        hidden_size=llm.hidden, num_hidden_layers=llm.layers, num_attention_heads=llm.heads,
        num_key_value_heads=llm.kv_heads, intermediate_size=llm.intermediate,
        vocab_size=llm.vocab, attn_implementation="eager",
    )  # fmt: skip
    decoder = Decoder(256, 4, 4, 2, 64, 768, llm.vocab, True)
    checkpoint = ModelCost("vora", decoder, None, 3 * 196 * 192, 224, 14, 1, False, 0, 0, True)
    tokens = 40
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Qwen2ForCausalLM(config)(torch.zeros(1, tokens, dtype=torch.long), logits_to_keep=1)
    per_pair = 4 * decoder.layers * decoder.heads * decoder.head_dim
    causal = checkpoint.prefill_flops(tokens)
    # Torch also counts the rotary tables: head_dim/2 x tokens, an outer product.
    rotary = 2 * (decoder.head_dim // 2) * tokens
    every_pair = causal + per_pair * (tokens**2 - tokens * (tokens + 1) / 2)
    assert counter.get_total_flops() in (every_pair, every_pair + rotary)

    tower = TINY.tower
    vision = SiglipVisionConfig(
        hidden_size=tower.hidden, num_hidden_layers=tower.layers,
        num_attention_heads=tower.heads, intermediate_size=tower.intermediate,
        image_size=224, patch_size=14, vision_use_head=False, attn_implementation="eager",
    )  # fmt: skip
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        SiglipVisionModel(vision)(torch.zeros(1, 3, 224, 224))
    llava = ModelCost(
        "llava", decoder, Tower(192, 6, 768, 14, False, 0), 3 * 196 * 192, 224, 14, 1,
        False, 0, 0, True,
    )  # fmt: skip
    assert counter.get_total_flops() == llava.vision_flops(SIDE)


def test_the_claim_on_paper() -> None:
    """At 7B and 1024 image tokens about 0.91 of the arithmetic; at 0.5B well below half."""
    image = [(448, 448)]
    ratios = {
        name: on_paper(name, False).prefill_flops(0, image)
        / on_paper(name, True).prefill_flops(0, image)
        for name in ("0.5b", "1.5b", "3b", "7b")
    }
    assert ratios["7b"] == pytest.approx(0.915, abs=0.01)
    assert ratios["0.5b"] < 0.45
    assert sorted(ratios.values()) == list(ratios.values())
    merged = on_paper("7b", False, merge=2)
    assert merged.image_tokens((448, 448)) == 256
    assert merged.prefill_flops(0, image) < on_paper("7b", False).prefill_flops(0, image) / 3


def test_seeing_the_whole_image_costs_what_it_adds() -> None:
    causal, whole = on_paper("0.5b", True), on_paper("0.5b", False)
    image = [(448, 448)]
    llm = causal.prefill_flops(30, image) - causal.vision_flops(image[0])
    extra = whole.prefill_flops(30, image) - whole.vision_flops(image[0]) - llm
    assert extra == 4 * 24 * 896 * 1024 * 1023 / 2


def test_native_sizes_round_and_stay_in_bounds(tmp_path: Path) -> None:
    build_vora(tmp_path / "native", TINY, resolution="native")
    found = read_checkpoint(tmp_path / "native")
    assert found.image_tokens((224, 112)) == 16 * 8
    assert found.image_tokens((20, 20)) == 16  # grown to 56 x 56
    assert found.image_tokens((4000, 3000)) <= 50 * 80
