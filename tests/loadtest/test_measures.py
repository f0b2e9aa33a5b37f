"""Measures of a round, and above all: an error never counts as a fast answer."""

from __future__ import annotations

from typing import Any

import pytest

from loadtest.analysis.measures import answers_of, measure
from loadtest.analysis.summary import compare_rounds
from loadtest.servers.scrape import means_between, parse_metrics
from loadtest.settings import ServiceLevel


def part(ttft: list[float], errors: list[str] | None = None, **more: Any) -> dict[str, Any]:
    """A server's part in a round: answers of three tokens, 0.1 s apart."""
    count = len(ttft)
    return {
        "ttft_s": ttft,
        "e2e_s": [t + 0.2 for t in ttft],
        "itl_s": [[0.0001, 0.1, 0.1]] * count,
        "prompt_tokens": [50] * count,
        "output_tokens": [3] * count,
        "errors": errors or [""] * count,
        "duration_s": 2.0,
        "used": [{"cpu_s": 4.0, "peak_rss_mib": 10.0, "pss_mib": 8.0, "gpu_mib": None}],
        "metrics": {},
        "text_prompt_tokens": 20,
    } | more


def test_measures() -> None:
    found = measure([part([0.5, 0.7]), part([0.6, 0.8])], ServiceLevel(ttft_ms=650, share=0.5))
    assert found["ttft_ms"]["p50"] == pytest.approx(650)
    assert found["tpot_ms"]["p50"] == pytest.approx(100)
    assert found["itl_ms"]["p50"] == pytest.approx(100)  # the role's event is no token
    assert found["e2e_ms"]["p50"] == pytest.approx(850)
    assert found["requests_per_s"] == 1
    assert found["goodput_per_s"] == 0.5
    assert found["meets_level"]
    assert found["cpu_s_per_request"] == 2
    assert found["pss_mib"] == 8
    assert found["image_tokens"] == 30


def test_errors_are_not_fast_answers() -> None:
    bad = part([0.5, 0.001], ["", "500 Internal Server Error"])
    found = measure([bad], ServiceLevel(ttft_ms=1000))
    assert found["failed"] == 1
    assert found["ttft_ms"]["p50"] == pytest.approx(500)
    assert found["requests_per_s"] == 0.5
    assert found["goodput_per_s"] == 0.5
    assert not found["meets_level"]
    assert found["cpu_s_per_request"] == 4  # what the failure cost is not given away
    assert measure([part([0.1], ["no"])], None)["ttft_ms"] == {}


def test_a_round_with_a_failure_counts_for_neither_side() -> None:
    slow = [part([1.0]) for _ in range(4)]
    fast = [part([0.5]) for _ in range(3)] + [part([0.001], ["cut off"])]
    found = compare_rounds(slow, fast)
    assert found["rounds"] == 3
    assert found["left_out"] == 1
    assert found["ttft"]["ratio"]["value"] == pytest.approx(2)
    assert found["ttft"]["difference"]["value"] == pytest.approx(0.5)
    assert found["ttft"]["verdict"] == "differs"
    nothing = compare_rounds(slow, [part([0.001], ["no"]) for _ in range(4)])
    assert "ttft" not in nothing


def test_breakdown_adds_up() -> None:
    metrics = {"engine_ttft": 0.4, "queue": 0.05, "prefill": 0.25, "gateway_overhead": 0.02}
    found = measure([part([0.5], metrics=metrics)], None)["breakdown_ms"]
    shown = ("processing", "queue", "prefill", "gateway_overhead", "transport")
    assert sum(found[key] for key in shown) == pytest.approx(500)
    assert found["processing"] == pytest.approx(100)


def test_metrics_are_read_and_subtracted() -> None:
    def text(total: float, count: int, hits: float) -> str:
        return (
            "# TYPE vllm:time_to_first_token_seconds histogram\n"
            f'vllm:time_to_first_token_seconds_bucket{{le="+Inf"}} {count}\n'
            f'vllm:time_to_first_token_seconds_sum{{model_name="m"}} {total}\n'
            f'vllm:time_to_first_token_seconds_count{{model_name="m"}} {count}\n'
            "# TYPE vllm:prefix_cache_hits_total counter\n"
            f'vllm:prefix_cache_hits_total{{model_name="m"}} {hits}\n'
        )

    routes = "".join(
        f'vora_gateway_overhead_seconds_{end}{{route="{route}"}} {value}\n'
        for route, value in (("/v1/chat/completions", 2), ("/v1/models", 40))
        for end in ("sum", "count")
    )
    one = parse_metrics("# TYPE vora_gateway_overhead_seconds histogram\n" + routes)
    assert one == {"gateway_overhead": (2.0, 2.0)}
    before, after = parse_metrics(text(10, 4, 7)), parse_metrics(text(13, 6, 9))
    assert means_between(before, after) == {"engine_ttft": 1.5, "prefix_cache_hits": 2.0}
    assert means_between(after, after) == {"prefix_cache_hits": 0.0}


def test_answers_of_nothing() -> None:
    assert answers_of([]).good == 0
