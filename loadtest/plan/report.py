"""``loadtest plan``: lines to print."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loadtest.analysis.regressions import load_results
from loadtest.plan.calibrate import Calibration, calibrate, checkpoint_of, cost_of
from loadtest.plan.fleet import load_mix, plan_fleet
from loadtest.plan.simulate import poisson_arrivals, simulate
from vora_core.errors import ConfigError


def plan_lines(
    results: Path, server: str, mix_file: Path | None, check: bool, width: int
) -> Iterator[str]:
    """What the plan says, as Markdown.

    Args:
        results: a run.
        server: whose costs to start from.
        mix_file: traffic; None with ``check`` alone.
        check: also simulate the run's own points.
        width: bytes of a weight as served.

    Raises:
        ConfigError
    """
    if mix_file is None and not check:
        raise ConfigError("Give --mix FILE, or --check, or both.")
    found = load_results(results)
    checkpoint = checkpoint_of(found, server)
    fit = calibrate(found, server, width)
    yield (
        f"{server}, calibrated on {fit.point}: {fit.flops_per_s / 1e9:.3g} GFLOP/s of prefill, "
        f"{fit.bytes_per_s / 1e9:.3g} GB/s of decode, {1000 * fit.fixed_s:.3g} ms before a prompt "
        "is scheduled."
    )
    if check:
        yield ""
        yield from check_lines(found, server, fit, width)
    if mix_file is not None:
        mix = load_mix(mix_file)
        yield ""
        yield (
            f"For {mix.rate:g} requests/s, {mix.level.share:.0%} of them within "
            f"{mix.level.model_dump(exclude={'share'}, exclude_none=True)}:"
        )
        yield ""
        yield "| hardware | replicas | per hour | per 1000 | TTFT p50 / p90 ms | TPOT ms |"
        yield "|---|---|---|---|---|---|"
        engine = fit.engine(mix.kv_gb * 1e9)
        for row in plan_fleet(mix, checkpoint, engine, fit.fixed_s):
            if row["replicas"] is None:
                yield f"| {row['hardware']} | none: {row['why']} | | | | |"
                continue
            yield (
                f"| {row['hardware']} | {row['replicas']} | {row['price_per_hour']:.2f} "
                f"| {row['price_per_1000']:.4f} | {row['ttft_p50_ms']:.0f} / "
                f"{row['ttft_p90_ms']:.0f} | {row['tpot_p50_ms']:.1f} |"
            )


def check_lines(found: dict[str, Any], server: str, fit: Calibration, width: int) -> Iterator[str]:
    """The run's own points, simulated, beside what was measured."""
    checkpoint = checkpoint_of(found, server)
    engine = fit.engine(_kv_bytes(found))
    workloads = {w["name"]: w for w in found["head"]["settings"]["workloads"]}
    yield "| point | TTFT p50 ms measured | simulated | off by | requests/s measured | simulated |"
    yield "|---|---|---|---|---|---|"
    for point in found["points"]:
        got = point["servers"].get(server)
        if not got or not got.get("expected") or not got["requests"]:
            continue
        workload = workloads[point["workload"]]
        images = workload["images"]
        sizes: list[tuple[int, int]] = []
        if images:
            size = point["size"] or images["sizes"][0]
            sizes = [(int(size[0]), int(size[1]))] * images["count"]
        text = round(got["prompt_tokens"] - got.get("image_tokens", 0.0))
        cost = cost_of(checkpoint, text, sizes, workload["output_tokens"], fit.fixed_s, width)
        count = workload["requests"]
        ttft: list[float] = []
        seconds = 0.0
        for repeat in range(20):
            requests = poisson_arrivals([cost], [1], point["rate"] or 1.0, count, repeat)
            simulate(engine, requests, point["concurrency"])
            ttft += [request.ttft for request in requests]
            seconds += max(r.done for r in requests)
        simulated = 1000 * statistics.median(ttft)
        real = got["ttft_ms"]["p50"]
        yield (
            f"| {point['id']} | {real:.1f} | {simulated:.1f} | {simulated / real - 1:+.0%} "
            f"| {got['requests_per_s']:.3g} | {20 * count / seconds:.3g} |"
        )


def _kv_bytes(found: dict[str, Any]) -> float:
    """The cache that the run's engines were given; a GiB unless the environment says more."""
    env = found["head"]["settings"]["engine"]["env"]
    return float(env.get("VLLM_CPU_KVCACHE_SPACE", 1)) * 2**30
