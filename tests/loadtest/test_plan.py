"""The simulator: arithmetic of one request, queueing under load, replicas, bad mixes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from loadtest.plan import Cost, Engine, Mix, Request, simulate
from loadtest.plan.fleet import engine_on, load_mix, replicas_needed
from loadtest.plan.simulate import poisson_arrivals
from tests.loadtest.test_model import on_paper
from vora_core.errors import ConfigError

COST = Cost(
    prompt=100,
    output=5,
    prefill_flops=1e9,
    decode_flops=1e6,
    weight_bytes=1e8,
    kv_bytes_per_token=1e3,
    fixed_s=0.05,
)
ENGINE = Engine(flops_per_s=1e10, bytes_per_s=1e10, overhead_s=0.001, kv_bytes=1e6)


def test_one_request_alone() -> None:
    (done,) = simulate(ENGINE, [Request(2.0, COST)])
    assert done.ttft == pytest.approx(0.05 + 0.001 + 0.1)
    assert done.tpot == pytest.approx(0.001 + 0.01, rel=0.01)


def test_two_together_share_a_step_and_a_third_waits_for_the_cache() -> None:
    small = Engine(1e10, 1e10, 0.0, kv_bytes=2 * 105 * 1e3)
    done = simulate(small, [Request(0.0, COST) for _ in range(3)])
    assert done[0].first_token == done[1].first_token == pytest.approx(0.25)
    assert done[2].first_token > done[0].done


def test_a_budget_of_tokens_lets_one_prompt_in_at_a_time() -> None:
    narrow = Engine(1e10, 1e10, 0.0, kv_bytes=1e9, max_tokens=100)
    first, second = simulate(narrow, [Request(0.0, COST), Request(0.0, COST)])
    assert second.first_token > first.first_token


def test_what_can_never_run_never_ends() -> None:
    tiny = Engine(1e10, 1e10, 0.0, kv_bytes=10)
    (done,) = simulate(tiny, [Request(0.0, COST)])
    assert math.isnan(done.ttft)


def test_a_closed_loop_keeps_its_number_under_way() -> None:
    alone = simulate(ENGINE, [Request(0.0, COST) for _ in range(6)], concurrency=1)
    ends = [request.done for request in alone]
    assert [r.arrival for r in alone[1:]] == ends[:-1]
    four = simulate(ENGINE, [Request(0.0, COST) for _ in range(6)], concurrency=4)
    assert max(r.done for r in four) < max(ends)


def test_queueing_grows_with_the_rate_until_it_saturates() -> None:
    def waits(rate: float) -> float:
        done = simulate(ENGINE, poisson_arrivals([COST], [1], rate, 400, 0))
        return sum(r.ttft for r in done) / len(done)

    assert 0.15 < waits(0.5) < waits(5) < waits(20)
    assert waits(20) > 5  # ten prompts a second are all it can prefill


def mix(**more: object) -> Mix:
    tree = {
        "rate": 40,
        "kinds": [{"text_tokens": 40, "output_tokens": 100, "images": [[448, 448]]}],
        "level": {"ttft_ms": 1000, "tpot_ms": 60, "share": 0.95},
        "hardware": [
            {"name": "small", "tflops": 100, "gb_per_s": 300, "memory_gb": 24},
            {"name": "large", "tflops": 900, "gb_per_s": 3000, "memory_gb": 80},
        ],
    }
    return Mix.model_validate(tree | more)


def test_replicas() -> None:
    engine = Engine(1e12, 1e11, 0.001, 1e9)
    cost = [Cost(1000, 20, 5e11, 1e9, 1e9, 1e4, 0.01)]
    needed = [replicas_needed(engine, cost, mix(rate=rate)) for rate in (0.5, 5, 50)]
    assert needed == sorted(needed)
    assert needed[-1] > needed[0]
    # Work is conserved: at half a second of prefill each, 50 a second keep 25 busy all the time.
    assert needed[-1] >= 25
    strict = mix(level={"ttft_ms": 400, "share": 0.9})
    assert replicas_needed(engine, cost, strict) is None


def test_a_device_without_room_for_the_weights() -> None:
    from dataclasses import replace

    large = replace(on_paper("7b", True), weight_bytes=17e9)
    small, big = mix().hardware
    assert engine_on(big, mix(), large) is not None
    assert engine_on(small, mix(memory_share=0.5), large) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [("a: [", "not valid YAML"), ("rate: 1", "kinds: field req"), ("rate: -1", "mix, rate: input")],
)
def test_bad_mixes(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "mix.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_mix(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_mix(tmp_path / "none.yaml")
