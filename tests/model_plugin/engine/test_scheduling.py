"""Images stay whole under a scheduler that is short of tokens and of memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from model_plugin.errors import SplitSpanError
from tests.model_plugin.conftest import Make, noise_image
from tests.model_plugin.engine.harness import (
    BLOCK,
    Case,
    assert_exact,
    generate,
    needs_vllm,
    recorded_preemptions,
    running_engine,
    scheduler_of,
)
from tests.oracle import Oracle

pytestmark = [needs_vllm, pytest.mark.engine, pytest.mark.filterwarnings("default")]

LARGEST = 120
SEQUENCES = 8
BUDGET = LARGEST + SEQUENCES
#: Blocks of KV cache: enough for one request of the longest kind, not for eight.
BLOCKS = 18


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
    with running_engine(
        checkpoint,
        max_model_len=BLOCK * (BLOCKS - 2),
        max_num_seqs=SEQUENCES,
        max_num_batched_tokens=BUDGET,
        num_gpu_blocks_override=BLOCKS,
    ) as engine:
        from model_plugin.engine.scheduler import SpanScheduler

        assert isinstance(scheduler_of(engine), SpanScheduler)
        yield engine


def test_preemption(engine: Any, oracle: Oracle) -> None:
    sizes = ((168, 98), (84, 140), (70, 56))
    cases = [
        Case(f"Q{i}: <image> and so on?", [noise_image(*sizes[i % 3], i)], max_tokens=40)
        for i in range(SEQUENCES)
    ]
    with recorded_preemptions(engine) as preempted:
        outputs = generate(engine, cases, prompt_logprobs=False)
    assert preempted
    assert_exact(oracle, cases, outputs)


def first_image_behind_a_long_text() -> list[Case]:
    """The second request's image starts its chunk, where the first request leaves it no room."""
    return [
        Case("ab cd " * 40, max_tokens=3),
        Case("<image> What is it?", [noise_image(168, 98, 3)], max_tokens=3),
    ]


def test_image_at_the_start_of_a_chunk_waits_for_room(engine: Any, oracle: Oracle) -> None:
    engine.reset_prefix_cache()
    cases = first_image_behind_a_long_text()
    assert_exact(oracle, cases, generate(engine, cases, prompt_logprobs=False))


def test_without_the_guard_the_engine_stops(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: vLLM's own guard cuts this image, and attention refuses to compute a part.

    It comes last, for the engine does not survive it.
    """
    from model_plugin.engine.scheduler import SpanGuard

    engine.reset_prefix_cache()
    monkeypatch.delattr(SpanGuard, "_try_schedule_encoder_inputs")
    with pytest.raises(SplitSpanError, match="computed in one step"):
        generate(engine, first_image_behind_a_long_text(), prompt_logprobs=False)
