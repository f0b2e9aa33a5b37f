"""vLLM on CPU gives what the oracle gives: same greedy tokens, log-probabilities within 1e-4."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.model_plugin.conftest import Make, noise_image
from tests.model_plugin.engine.harness import (
    TOLERANCE,
    Case,
    assert_exact,
    difference,
    generate,
    needs_vllm,
    running_engine,
)
from tests.oracle import Oracle

pytestmark = [needs_vllm, pytest.mark.engine, pytest.mark.filterwarnings("default")]

#: Of the images below, the largest has this many tokens.
LARGEST = 120
SEQUENCES = 8
BUDGET = LARGEST + SEQUENCES

TEXT = "<|im_start|>user\nTell me about the colours of a circle, a square and a star."
SMALL, WIDE, TALL = noise_image(70, 56, 1), noise_image(168, 98, 2), noise_image(84, 140, 3)


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Make) -> Any:
    return make_checkpoint(
        resolution="native", preprocessor={"max_pixels": LARGEST * 14 * 14, "min_pixels": 14 * 14}
    )


@pytest.fixture(scope="module")
def oracle(checkpoint: Any) -> Oracle:
    return Oracle(checkpoint)


@pytest.fixture(scope="module")
def engine(checkpoint: Any) -> Iterator[Any]:
    # The threshold is below every image; the configuration hook must not let it stand.
    with running_engine(
        checkpoint,
        max_num_seqs=SEQUENCES,
        max_num_batched_tokens=BUDGET,
        long_prefill_token_threshold=24,
    ) as engine:
        yield engine


CASES = {
    "text_only": Case(TEXT),
    "one_image": Case(f"{TEXT} <image> What is it?", [WIDE]),
    "two_images": Case(f"{TEXT} <image> or <image>?", [SMALL, TALL]),
    "three_images": Case("A <image> then <|image_pad|>, last <image>.", [TALL, SMALL, WIDE]),
    "image_first": Case("<image> is what?", [TALL]),
    "image_last": Case(f"{TEXT} <image>", [WIDE]),
    "only_images": Case("<image><image>", [SMALL, SMALL]),
    "adjacent": Case("See <image><image><image> now", [SMALL, WIDE, TALL]),
}


@pytest.mark.parametrize("name", CASES)
def test_alone(engine: Any, oracle: Oracle, name: str) -> None:
    assert_exact(oracle, [CASES[name]], generate(engine, [CASES[name]]))


def test_eight_at_once(engine: Any, oracle: Oracle) -> None:
    cases = list(CASES.values())
    assert len(cases) == 8
    assert_exact(oracle, cases, generate(engine, cases))


def test_image_larger_than_what_a_chunk_has_left(engine: Any, oracle: Oracle) -> None:
    """Text of every length up to a chunk, so that chunks end before, in and behind the image."""
    for length in (BUDGET - 1, BUDGET, BUDGET + 1, BUDGET + 40, 2 * BUDGET - 60, 2 * BUDGET):
        case = Case("a b" * (length // 3 + 1) + "<image> and <image>", [WIDE, TALL], max_tokens=3)
        assert_exact(oracle, [case], generate(engine, [case]))


@pytest.mark.parametrize("beginning", ["x", "Look here: ", "x = y, so look at this here: "])
def test_prefix_cache_hit_inside_an_image(engine: Any, oracle: Oracle, beginning: str) -> None:
    engine.reset_prefix_cache()
    case = Case(f"{beginning}<image>?", [WIDE])
    first = generate(engine, [case], prompt_logprobs=False)
    again = generate(engine, [case], prompt_logprobs=False)
    assert first[0].num_cached_tokens == 0
    start = len(oracle.chunks(case.prompt)[0])
    tokens = len(first[0].prompt_token_ids) - sum(map(len, oracle.chunks(case.prompt)))
    assert start < again[0].num_cached_tokens < start + tokens
    assert_exact(oracle, [case, case], [*first, *again])


def test_prefix_cache_is_keyed_by_the_image(engine: Any, oracle: Oracle) -> None:
    """Same tokens, another image: nothing of the first image is used."""
    engine.reset_prefix_cache()
    cases = [Case("Look: <image> What?", [noise_image(168, 98, seed)]) for seed in (2, 5, 2)]
    outputs = [generate(engine, [case], prompt_logprobs=False)[0] for case in cases]
    assert [output.num_cached_tokens > 0 for output in outputs] == [False, False, True]
    assert_exact(oracle, cases, outputs)


def test_prefix_cache_hits_among_many(engine: Any, oracle: Oracle) -> None:
    """Hits inside images, beside fresh prompts, with chunks that run out."""
    cases = [Case(f"{TEXT} <image> Q{i}", [(SMALL, WIDE, TALL)[i % 3]]) for i in range(8)]
    assert_exact(oracle, cases, generate(engine, cases, prompt_logprobs=False))
    assert_exact(oracle, cases, generate(engine, cases, prompt_logprobs=False))


def test_causal_attention_is_noticed(
    engine: Any, oracle: Oracle, checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: with vLLM's own metadata builder the same check fails, as a causal model would."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionMetadataBuilder

    from model_plugin.engine.attention_cpu import SpanCPUAttentionMetadataBuilder

    engine.reset_prefix_cache()
    monkeypatch.setattr(SpanCPUAttentionMetadataBuilder, "build", CPUAttentionMetadataBuilder.build)
    case = CASES["one_image"]
    [output] = generate(engine, [case])
    engine.reset_prefix_cache()
    assert difference(oracle, case, output) > 100 * TOLERANCE
    assert difference(Oracle(checkpoint, causal=True), case, output) < TOLERANCE
