"""Whole engines against the dense mask: Model Runner V2, asynchronous scheduling, graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cuda_stand_in.graphs import FakeGraph
from tests.cuda_stand_in.machine import recorded_launches
from tests.model_plugin.conftest import Make, noise_image
from tests.model_plugin.engine.harness import (
    TOLERANCE,
    Case,
    assert_exact,
    difference,
    generate,
    recorded_preemptions,
    running_engine,
)
from tests.model_plugin.engine.test_cuda_builder import shifted
from tests.oracle import Oracle

LARGEST, SEQUENCES, BLOCK = 120, 8, 16
#: Blocks of KV cache: enough for the longest request, not for eight.
BLOCKS = 24
WIDE, TALL, SMALL = noise_image(168, 98, 2), noise_image(84, 140, 3), noise_image(70, 56, 1)
SIZES = ((168, 98), (84, 140), (70, 56))


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Make) -> Path:
    return make_checkpoint(
        resolution="native", preprocessor={"max_pixels": LARGEST * 14 * 14, "min_pixels": 14 * 14}
    )


@pytest.fixture(scope="module")
def oracle(checkpoint: Path) -> Oracle:
    return Oracle(checkpoint)


@contextmanager
def stand_in_engine(checkpoint: Path, **settings: Any) -> Iterator[Any]:
    """An engine as on CUDA, in float32, with kernels that exist on the CPU."""
    defaults: dict[str, Any] = {
        "attention_config": {"backend": "CUSTOM"},
        "block_size": BLOCK,
        "ir_op_priority": {"rms_norm": ["native"], "fused_add_rms_norm": ["native"]},
        "kv_cache_memory_bytes": 1 << 26,
        "max_num_batched_tokens": LARGEST + SEQUENCES,
        "max_num_seqs": SEQUENCES,
        "worker_cls": "tests.cuda_stand_in.worker.StandInWorker",
    }
    compilation = {"custom_ops": ["none"], **settings.pop("compilation_config", {})}
    given = defaults | {"compilation_config": compilation} | settings
    with running_engine(checkpoint, **given) as engine:
        config = engine.llm_engine.vllm_config
        assert config.use_v2_model_runner
        assert config.scheduler_config.async_scheduling
        yield engine


@pytest.fixture(scope="module", params=["0", "1"], ids=["two launches", "image rows skipped"])
def engine(request: pytest.FixtureRequest, checkpoint: Path) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VORA_SKIP_IMAGE_ROWS", request.param)
        with stand_in_engine(checkpoint) as running:
            yield running


CASES = [
    Case("Tell me about the colours.", max_tokens=9),
    Case("Look: <image> What is it?", [WIDE]),
    Case("<image><image> See <image>", [TALL, SMALL, WIDE]),
    Case("a b " * 60 + "<image> and so on", [TALL]),
]


def test_batches_and_chunks(engine: Any, oracle: Oracle) -> None:
    """Prompts longer than a step, several images, text beside them."""
    assert_exact(oracle, CASES, generate(engine, CASES))


def test_prefix_hits_inside_an_image(engine: Any, oracle: Oracle) -> None:
    hit = Case("x = y, so look: <image>?", [WIDE])
    first, again = (generate(engine, [hit], prompt_logprobs=False)[0] for _ in range(2))
    assert 16 < again.num_cached_tokens < len(again.prompt_token_ids) - 2
    assert_exact(oracle, [hit, hit], [first, again])


def test_decoding_is_one_launch(engine: Any) -> None:
    engine.reset_prefix_cache()
    layers = 3
    with recorded_launches() as launches:
        generate(engine, [Case("What <image>?", [SMALL], max_tokens=4)], prompt_logprobs=False)
    # Three steps decode; the asynchronous scheduler may run one more, whose token is dropped.
    kinds = [launch.causal for launch in launches]
    assert kinds[: 2 * layers] == [True, False] * layers
    assert all(kinds[2 * layers :])
    assert len(kinds) in (5 * layers, 6 * layers)


@pytest.mark.parametrize("fault", ["no second launch", "rows off by one"])
def test_faults_are_noticed(
    engine: Any, oracle: Oracle, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: what the engine answers is compared with something that can differ."""
    from model_plugin.engine import attention_cuda

    engine.reset_prefix_cache()
    right = attention_cuda.image_batch
    faults: dict[str, Callable[..., Any]] = {
        "no second launch": lambda *_: None,
        "rows off by one": lambda *arguments: shifted(right(*arguments)),
    }
    monkeypatch.setattr(attention_cuda, "image_batch", faults[fault])
    case = Case("Now <image>, then?", [WIDE])
    [output] = generate(engine, [case])
    assert not difference(oracle, case, output) < 100 * TOLERANCE
    engine.reset_prefix_cache()


def test_preemption(checkpoint: Path, oracle: Oracle) -> None:
    with stand_in_engine(
        checkpoint, max_model_len=BLOCK * (BLOCKS - 2), num_gpu_blocks_override=BLOCKS
    ) as engine:
        cases = [
            Case(f"Q{i}: <image> and so on?", [noise_image(*SIZES[i % 3], i)], max_tokens=40)
            for i in range(SEQUENCES)
        ]
        with recorded_preemptions(engine) as preempted:
            outputs = generate(engine, cases, prompt_logprobs=False)
        assert preempted
        assert_exact(oracle, cases, outputs)


def test_full_graphs_for_decoding(checkpoint: Path, oracle: Oracle) -> None:
    """Requests beside each other decode in captured graphs, whose sizes they are padded to."""
    cases = [
        Case(f"{i} <image>", [noise_image(*SIZES[i % 3], i)], max_tokens=6 + i) for i in range(7)
    ]
    with stand_in_engine(
        checkpoint,
        enforce_eager=False,
        compilation_config={
            "mode": 0,
            "cudagraph_mode": "FULL_DECODE_ONLY",
            "cudagraph_capture_sizes": [2, 4, 8],
        },
    ) as engine:
        before = FakeGraph.replays
        outputs = generate(engine, cases, prompt_logprobs=False)
        assert FakeGraph.replays - before > 5
        assert_exact(oracle, cases, outputs)


def test_full_graphs_for_speculation(checkpoint: Path, oracle: Oracle) -> None:
    """A graph of four queries a request is not replayed for a prompt of four tokens, an image."""
    cases = [
        Case("<image>", [noise_image(28, 28, 5)], max_tokens=12),
        Case("a b a b a b a b <image> a b a b a", [SMALL], max_tokens=12),
        Case("c d c d c d c d c d", max_tokens=12),
    ]
    with stand_in_engine(
        checkpoint,
        enforce_eager=False,
        compilation_config={"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"},
        max_num_batched_tokens=LARGEST + 4 * SEQUENCES,
        speculative_config={
            "method": "ngram_gpu",
            "num_speculative_tokens": 3,
            "prompt_lookup_max": 2,
        },
    ) as engine:
        before = FakeGraph.replays
        outputs = generate(engine, cases, prompt_logprobs=False)
        assert FakeGraph.replays > before
        assert len(outputs[0].prompt_token_ids) == 4
        assert_exact(oracle, cases, outputs)
        # Alone, nothing else decides which graph is taken.
        engine.reset_prefix_cache()
        assert_exact(oracle, cases[:1], generate(engine, cases[:1], prompt_logprobs=False))
