"""From a round's raw answers to measures; failed requests count for nothing but as failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loadtest.settings import ServiceLevel

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class Answers:
    """The good answers of one round or several.

    Args:
        ttft, tpot, e2e: seconds, one per request.
        itl: seconds between tokens, of all requests together.
        prompt, output: tokens, one per request.
        failed: requests that failed.
        errors: what they failed with.
        duration: seconds that all requests took together.
    """

    ttft: np.ndarray
    tpot: np.ndarray
    e2e: np.ndarray
    itl: np.ndarray
    prompt: np.ndarray
    output: np.ndarray
    failed: int
    errors: tuple[str, ...]
    duration: float

    @property
    def good(self) -> int:
        """How many succeeded."""
        return len(self.ttft)


def answers_of(results: Sequence[dict[str, Any]]) -> Answers:
    """The answers of a server's part in some rounds, as the runner has kept them."""
    ttft, tpot, e2e, itl, prompt, output = [], [], [], [], [], []
    errors: list[str] = []
    for result in results:
        for at, error in enumerate(result["errors"]):
            if error:
                errors.append(error)
                continue
            tokens = result["output_tokens"][at]
            first, whole = result["ttft_s"][at], result["e2e_s"][at]
            ttft.append(first)
            e2e.append(whole)
            tpot.append((whole - first) / (tokens - 1))
            # A stream begins with the assistant's role and its first token, in two events sent
            # together: the gap between them is none between tokens.
            gaps = result["itl_s"][at]
            itl += gaps[1:] if len(gaps) >= tokens else gaps
            prompt.append(result["prompt_tokens"][at])
            output.append(tokens)
    return Answers(
        ttft=np.asarray(ttft, float),
        tpot=np.asarray(tpot, float),
        e2e=np.asarray(e2e, float),
        itl=np.asarray(itl, float),
        prompt=np.asarray(prompt, float),
        output=np.asarray(output, float),
        failed=len(errors),
        errors=tuple(dict.fromkeys(errors)),
        duration=sum(result["duration_s"] for result in results),
    )


def percentiles_ms(values: np.ndarray) -> dict[str, float]:
    """Mean and percentiles, in milliseconds; empty without values."""
    if not len(values):
        return {}
    found = {f"p{p}": 1000 * float(np.percentile(values, p)) for p in PERCENTILES}
    return {"mean": 1000 * float(values.mean()), **found}


def share_within(answers: Answers, level: ServiceLevel) -> float:
    """Share of all requests, failed ones among them, that keep to a service level."""
    fine = np.ones(answers.good, bool)
    for values, limit in (
        (answers.ttft, level.ttft_ms),
        (answers.tpot, level.tpot_ms),
        (answers.e2e, level.e2e_ms),
    ):
        if limit is not None:
            fine &= values * 1000 <= limit
    total = answers.good + answers.failed
    return float(fine.sum()) / total if total else 0.0


def measure(results: Sequence[dict[str, Any]], level: ServiceLevel | None) -> dict[str, Any]:
    """Everything that is reported of one server at one point.

    Args:
        results: its part in each round.
        level: service level for goodput.
    """
    answers = answers_of(results)
    found: dict[str, Any] = {
        "requests": answers.good,
        "failed": answers.failed,
        "errors": list(answers.errors[:5]),
        "ttft_ms": percentiles_ms(answers.ttft),
        "tpot_ms": percentiles_ms(answers.tpot),
        "itl_ms": percentiles_ms(answers.itl),
        "e2e_ms": percentiles_ms(answers.e2e),
        "requests_per_s": answers.good / answers.duration if answers.duration else 0.0,
        "output_tokens_per_s": float(answers.output.sum()) / answers.duration,
        "prompt_tokens_per_s": float(answers.prompt.sum()) / answers.duration,
        "prompt_tokens": float(answers.prompt.mean()) if answers.good else None,
        "cpu_s_per_request": cpu_per_request(results),
        "own_cpu_s_per_request": cpu_per_request(results, own=True),
        "peak_rss_mib": _highest(results, "peak_rss_mib"),
        "pss_mib": _highest(results, "pss_mib"),
        "gpu_mib": _highest(results, "gpu_mib"),
        "breakdown_ms": breakdown_ms(results, answers),
        "counters": {
            key: sum(result["metrics"].get(key, 0.0) for result in results)
            for key in ("prefix_cache_hits", "mm_cache_hits", "preemptions")
        },
    }
    if level is not None:
        share = share_within(answers, level)
        found["share_within_level"] = share
        found["goodput_per_s"] = share * (answers.good + answers.failed) / answers.duration
        found["meets_level"] = share >= level.share
    texts = [r["text_prompt_tokens"] for r in results if r.get("text_prompt_tokens") is not None]
    if texts and answers.good:
        found["image_tokens"] = float(answers.prompt.mean()) - float(np.mean(texts))
    return found


def cpu_per_request(results: Sequence[dict[str, Any]], own: bool = False) -> float | None:
    """CPU seconds per good request, of the server and of the server that it proxies, or its own."""
    seconds = good = 0.0
    for result in results:
        if not result["used"]:
            return None
        seconds += sum(used["cpu_s"] for used in (result["used"][:1] if own else result["used"]))
        good += sum(1 for error in result["errors"] if not error)
    return seconds / good if good else None


def breakdown_ms(results: Sequence[dict[str, Any]], answers: Answers) -> dict[str, float]:
    """Where the mean time to first token goes, in milliseconds, from the servers' own metrics.

    ``transport`` is what no server accounts for: the client, the network, HTTP. ``processing`` is
    the engine's front: decoding and preparing images, tokens, the way to its scheduler.
    """
    parts: dict[str, list[float]] = {}
    for result in results:
        for key, value in result["metrics"].items():
            parts.setdefault(key, []).append(1000 * value)
    mean = {key: float(np.mean(values)) for key, values in parts.items()}
    found: dict[str, float] = {}
    for key in ("gateway_queue", "gateway_fetch", "gateway_decode", "gateway_overhead"):
        if key in mean:
            found[key] = mean[key]
    if "engine_ttft" not in mean or not answers.good:
        return found
    queue, prefill = mean.get("queue", 0.0), mean.get("prefill", 0.0)
    found["processing"] = mean["engine_ttft"] - queue - prefill
    found["queue"] = queue
    found["prefill"] = prefill
    whole = 1000 * float(answers.ttft.mean())
    inside = mean["engine_ttft"] + mean.get("gateway_overhead", 0.0)
    found["transport"] = whole - inside - mean.get("gateway_queue", 0.0)
    return found


def _highest(results: Sequence[dict[str, Any]], key: str) -> float | None:
    """Highest over the rounds of the sum over a server's processes."""
    sums = [
        sum(used[key] for used in result["used"])
        for result in results
        if result["used"] and all(used[key] is not None for used in result["used"])
    ]
    return max(sums) if sums else None
