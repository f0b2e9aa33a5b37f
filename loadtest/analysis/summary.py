"""From a run's folder to ``results.json``: measures, paired ratios, expectations, verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from loadtest.analysis.measures import answers_of, cpu_per_request, measure
from loadtest.analysis.stats import Interval, difference_interval, ratio_interval
from loadtest.cost import ModelCost
from loadtest.drive.points import Point, points_of
from loadtest.drive.store import RunFolder, write_whole
from loadtest.settings import RunSettings, parse_settings

Result = dict[str, Any]

#: How far, on either side of one, a measured ratio may be from the expected before it is marked.
TOLERANCE = 0.15


def _median(key: str) -> Callable[[Result], float | None]:
    def of(result: Result) -> float | None:
        values = sorted(float(value) for value in getattr(answers_of([result]), key))
        return values[len(values) // 2] if values else None

    return of


def _throughput(result: Result) -> float | None:
    answers = answers_of([result])
    return answers.good / answers.duration if answers.good else None


def _memory(result: Result) -> float | None:
    values = [used["pss_mib"] or used["peak_rss_mib"] for used in result["used"]]
    return sum(values) or None


#: Measures that are compared round by round: how a round's value comes about, and its unit.
MEASURES: dict[str, tuple[Callable[[Result], float | None], str]] = {
    "ttft": (_median("ttft"), "s"),
    "tpot": (_median("tpot"), "s"),
    "e2e": (_median("e2e"), "s"),
    "requests_per_s": (_throughput, "1/s"),
    "cpu_s_per_request": (lambda result: cpu_per_request([result]), "s"),
    "memory": (_memory, "MiB"),
}


def compare_rounds(first: Sequence[Result], second: Sequence[Result]) -> dict[str, Any]:
    """Ratio first/second and difference of every measure, over rounds without a failed request.

    A round in which either side failed counts for neither, so that no error passes for speed.
    """
    clean = [
        (a, b)
        for a, b in zip(first, second, strict=True)
        if not any(a["errors"]) and not any(b["errors"])
    ]
    found: dict[str, Any] = {"rounds": len(clean), "left_out": len(first) - len(clean)}
    for name, (value, unit) in MEASURES.items():
        pairs = [(value(a), value(b)) for a, b in clean]
        known = [(a, b) for a, b in pairs if a is not None and b is not None and a > 0 and b > 0]
        if not known or len(known) < len(pairs):
            continue
        ones, others = [a for a, _ in known], [b for _, b in known]
        ratio = ratio_interval(ones, others)
        found[name] = {
            "ratio": ratio.to_json(),
            "difference": difference_interval(ones, others).to_json() | {"unit": unit},
            "verdict": verdict(ratio),
        }
    return found


def verdict(ratio: Interval) -> str:
    """``differs``, ``no difference found``, or ``too few rounds``."""
    if ratio.low != ratio.low:
        return "too few rounds"
    return "no difference found" if ratio.contains(1.0) else "differs"


def expectation(point: Point, text: float, checkpoint: ModelCost) -> dict[str, float]:
    """What a request of a point should cost a checkpoint.

    Args:
        point: which; of mixed sizes, the mean over them.
        text: tokens of text in a prompt.
        checkpoint: what answers.
    """
    images = point.workload.images
    choices: list[list[tuple[int, int]]] = [[]]
    if images is not None:
        sizes = [point.size] if point.size is not None else images.sizes
        choices = [[size] * images.count for size in sizes]
    many = len(choices)
    answered = point.workload.output_tokens
    tokens = sum(sum(checkpoint.image_tokens(s) for s in sizes) for sizes in choices) / many
    prefill = sum(checkpoint.prefill_flops(round(text), sizes) for sizes in choices) / many
    decode = (answered - 1) * checkpoint.decode_flops(round(text + tokens) + answered // 2)
    return {
        "image_tokens": tokens,
        "prefill_tflop": prefill / 1e12,
        "request_tflop": (prefill + decode) / 1e12,
        "vision_tflop": sum(sum(checkpoint.vision_flops(s) for s in sizes) for sizes in choices)
        / many
        / 1e12,
        "decode_mb_per_token": checkpoint.decode_bytes(round(text + tokens)) / 1e6,
        "kv_mb_per_request": checkpoint.kv_bytes(round(text + tokens) + answered) / 1e6,
        "weights_gb": checkpoint.weight_bytes / 1e9,
    }


def expected_ratios(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    """What the ratios first/second should be, on paper."""
    return {
        "ttft": first["prefill_tflop"] / second["prefill_tflop"],
        "tpot": first["decode_mb_per_token"] / second["decode_mb_per_token"],
        "cpu_s_per_request": first["request_tflop"] / second["request_tflop"],
        "memory": first["weights_gb"] / second["weights_gb"],
        "weights": first["weights_gb"] / second["weights_gb"],
    }


def summarise(folder: RunFolder) -> dict[str, Any]:
    """Everything that a report shows; also written to ``results.json``.

    Raises:
        ConfigError: the folder holds no run.
    """
    head = folder.head()
    settings = parse_settings(head["settings"])
    checkpoints = {name: ModelCost.from_json(value) for name, value in head["checkpoints"].items()}
    points = []
    for workload in settings.workloads:
        for point in points_of(workload, head["rates"].get(workload.name, [])):
            rounds = [results for _, results in folder.rounds(point.id)]
            if rounds:
                points.append(_point(point, rounds, settings, checkpoints))
    found = {
        "format": 1,
        "head": head,
        "complete": "ended" in head,
        "points": points,
        "best_rates": best_rates(points),
    }
    found["broken"] = broken_thresholds(found, settings)
    write_whole(folder.path / "results.json", found)
    return found


def _point(
    point: Point,
    rounds: Sequence[dict[str, Result]],
    settings: RunSettings,
    checkpoints: dict[str, ModelCost],
) -> dict[str, Any]:
    servers = {
        name: measure([results[name] for results in rounds], point.workload.level)
        for name in rounds[0]
    }
    for name, found in servers.items():
        if name in checkpoints and found["prompt_tokens"] is not None:
            text = found["prompt_tokens"] - found.get("image_tokens", 0.0)
            found["expected"] = expectation(point, text, checkpoints[name])
    compared = []
    for first, second in settings.pairs():
        if first not in servers or second not in servers:
            continue
        pair: dict[str, Any] = {"first": first, "second": second}
        pair |= compare_rounds([r[first] for r in rounds], [r[second] for r in rounds])
        ones, others = servers[first].get("expected"), servers[second].get("expected")
        if ones and others:
            pair["expected"] = expected_ratios(ones, others)
            pair["unlike_expected"] = [
                name
                for name, expected in pair["expected"].items()
                if name in pair and abs(pair[name]["ratio"]["value"] / expected - 1) > TOLERANCE
            ]
        compared.append(pair)
    return {
        "id": point.id,
        "workload": point.workload.name,
        "size": point.size,
        "concurrency": point.concurrency,
        "rate": point.rate,
        "rounds": len(rounds),
        "load": [min(loads := [r[n]["load"] for r in rounds for n in r]), max(loads)],
        "servers": servers,
        "compared": compared,
    }


def best_rates(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The highest offered rate that meets the service level, by workload, size and server."""
    best: dict[tuple[str, str, str], float | None] = {}
    for point in points:
        if point["rate"] is None:
            continue
        size = "x".join(map(str, point["size"])) if point["size"] else ""
        for name, found in point["servers"].items():
            if "meets_level" in found:
                key = (point["workload"], size, name)
                known = best.get(key)
                best[key] = max(known or 0.0, point["rate"]) if found["meets_level"] else known
    return [
        {"workload": workload, "size": size, "server": server, "rate_per_s": rate}
        for (workload, size, server), rate in best.items()
    ]


def broken_thresholds(found: dict[str, Any], settings: RunSettings) -> list[str]:
    """One sentence for each reason why the exit status is 1."""
    reasons = []
    if not found["complete"]:
        reasons.append("The run was cut off before its end.")
    for point in found["points"]:
        for name, measured in point["servers"].items():
            if measured["failed"] and not settings.thresholds.allow_errors:
                reasons.append(
                    f"{point['id']}: {measured['failed']} requests to {name} failed, "
                    f"with: {measured['errors'][0]}"
                )
        for pair in point["compared"]:
            for key, limit in settings.thresholds.max_ratio.items():
                workload, _, name = key.rpartition(".")
                low = pair.get(name, {}).get("ratio", {}).get("low")
                if workload == point["workload"] and low is not None and low > limit:
                    reasons.append(
                        f"{point['id']}: {name} of {pair['first']} / {pair['second']} is above "
                        f"{limit}: its interval begins at {low:.3f}."
                    )
    return reasons
