"""What a server says of itself in ``/metrics``, and where its time to first token goes."""

from __future__ import annotations

from collections.abc import Mapping

import httpx
from prometheus_client.parser import text_string_to_metric_families

#: Histograms of engine and gateway that make up the time to first token, in seconds.
_PARTS = {
    "engine_ttft": "vllm:time_to_first_token_seconds",
    "queue": "vllm:request_queue_time_seconds",
    "prefill": "vllm:request_prefill_time_seconds",
    "decode": "vllm:request_decode_time_seconds",
    "gateway_ttft": "vora_gateway_time_to_first_token_seconds",
    "gateway_queue": "vora_gateway_queue_duration_seconds",
    "gateway_fetch": "vora_gateway_image_fetch_duration_seconds",
    "gateway_decode": "vora_gateway_image_decode_duration_seconds",
    "gateway_overhead": "vora_gateway_overhead_seconds",
}

_COUNTERS = {
    "prefix_cache_hits": "vllm:prefix_cache_hits",
    "prefix_cache_queries": "vllm:prefix_cache_queries",
    "mm_cache_hits": "vllm:mm_cache_hits",
    "preemptions": "vllm:num_preemptions",
}

Sums = dict[str, tuple[float, float]]


def parse_metrics(text: str) -> Sums:
    """(sum, count) of each known histogram, (value, 0) of each known counter."""
    names = {name: key for key, name in _PARTS.items()}
    counters = {f"{name}_total": key for key, name in _COUNTERS.items()}
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in counters:
                key = counters[sample.name]
                sums[key] = sums.get(key, 0.0) + sample.value
                counts.setdefault(key, 0.0)
            elif family.name in names and _of_chat(sample.labels):
                key = names[family.name]
                if sample.name.endswith("_sum"):
                    sums[key] = sums.get(key, 0.0) + sample.value
                elif sample.name.endswith("_count"):
                    counts[key] = counts.get(key, 0.0) + sample.value
    return {key: (value, counts.get(key, 0.0)) for key, value in sums.items()}


def _of_chat(labels: Mapping[str, str]) -> bool:
    """Whether a sample is of the route that is asked here, where the server labels routes."""
    return labels.get("route", "/chat/completions").endswith("/chat/completions")


def scrape(url: str, key: str | None = None) -> Sums:
    """The server's metrics now; empty where it has none."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(f"{url}/metrics", headers=headers, timeout=30)
    except httpx.HTTPError:
        return {}
    return parse_metrics(answer.text) if answer.status_code == 200 else {}


def means_between(before: Mapping[str, tuple[float, float]], after: Sums) -> dict[str, float]:
    """Mean of each histogram's new samples (seconds), and growth of each counter."""
    result = {}
    for key, (total, count) in after.items():
        total_before, count_before = before.get(key, (0.0, 0.0))
        if key in _COUNTERS:
            result[key] = total - total_before
        elif count > count_before:
            result[key] = (total - total_before) / (count - count_before)
    return result
