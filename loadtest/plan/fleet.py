"""How many replicas of which device a traffic mix needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from loadtest.cost import ModelCost
from loadtest.plan.calibrate import cost_of
from loadtest.plan.simulate import Cost, Engine, poisson_arrivals, simulate
from loadtest.settings import ServiceLevel
from vora_core import typed_yaml

Positive = Annotated[float, Field(gt=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Kind(_Strict):
    """One kind of request in the mix; ``share`` is relative to the others'."""

    share: Positive = 1
    text_tokens: Annotated[int, Field(ge=1)]
    output_tokens: Annotated[int, Field(ge=2)]
    images: list[tuple[int, int]] = []


class Hardware(_Strict):
    """A device by its data sheet.

    Args:
        tflops: dense arithmetic at the served precision, peak.
        gb_per_s: memory bandwidth, peak.
        memory_gb: in all.
        price_per_hour: in whatever currency.
        compute_share, bandwidth_share: of the peaks that is reached.
        overhead_ms: of a step.
    """

    name: str
    tflops: Positive
    gb_per_s: Positive
    memory_gb: Positive
    price_per_hour: Annotated[float, Field(ge=0)] = 0.0
    compute_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    bandwidth_share: Annotated[float, Field(gt=0, le=1)] = 0.7
    overhead_ms: Annotated[float, Field(ge=0)] = 3.0


class Mix(_Strict):
    """What a fleet has to carry.

    Args:
        rate: requests per second in all.
        kinds: of request.
        level: service level.
        hardware: devices to consider; the measured one is always among them.
        fixed_ms: of a request before its prompt is scheduled, on ``hardware``.
        memory_share: of a device's memory that weights and cache may take.
        kv_gb: cache of the measured device.
        requests: simulated for each answer.
    """

    rate: Positive
    kinds: Annotated[list[Kind], Field(min_length=1)]
    level: ServiceLevel
    hardware: list[Hardware] = []
    fixed_ms: Annotated[float, Field(ge=0)] = 20.0
    memory_share: Annotated[float, Field(gt=0, le=1)] = 0.9
    kv_gb: Positive = 1.0
    requests: Annotated[int, Field(ge=50)] = 600


def load_mix(path: Path) -> Mix:
    """Read a mix.

    Raises:
        ConfigError: it cannot be read, or a key or a value is wrong.
    """
    return typed_yaml.load(Mix, path, subject="mix")


def costs_of(mix: Mix, checkpoint: ModelCost, fixed_s: float) -> list[Cost]:
    """What each kind of the mix costs a checkpoint."""
    return [
        cost_of(checkpoint, kind.text_tokens, list(kind.images), kind.output_tokens, fixed_s)
        for kind in mix.kinds
    ]


def engine_on(device: Hardware, mix: Mix, checkpoint: ModelCost) -> Engine | None:
    """An engine on a device; None where the weights leave no room for a cache."""
    cache = (device.memory_gb * mix.memory_share) * 1e9 - checkpoint.weight_bytes
    if cache <= 0:
        return None
    return Engine(
        device.tflops * 1e12 * device.compute_share,
        device.gb_per_s * 1e9 * device.bandwidth_share,
        device.overhead_ms / 1000,
        cache,
    )


def share_met(
    engine: Engine, costs: list[Cost], mix: Mix, rate: float, seed: int = 0
) -> tuple[float, dict[str, float]]:
    """Share of simulated requests within the level at a rate on one replica, and percentiles."""
    shares = [kind.share for kind in mix.kinds]
    done = simulate(engine, poisson_arrivals(costs, shares, rate, mix.requests, seed))
    # The first tenth finds an empty engine.
    done = done[len(done) // 10 :]
    level = mix.level
    ttft = np.asarray([request.ttft for request in done])
    tpot = np.asarray([request.tpot for request in done])
    e2e = np.asarray([request.done - request.arrival for request in done])
    fine = ~np.isnan(e2e)
    for values, limit in ((ttft, level.ttft_ms), (tpot, level.tpot_ms), (e2e, level.e2e_ms)):
        if limit is not None:
            fine &= values * 1000 <= limit
    return float(fine.mean()), {
        "ttft_p50_ms": 1000 * float(np.nanmedian(ttft)) if fine.any() else float("nan"),
        "ttft_p90_ms": 1000 * float(np.nanpercentile(ttft, 90)) if fine.any() else float("nan"),
        "tpot_p50_ms": 1000 * float(np.nanmedian(tpot)) if fine.any() else float("nan"),
    }


def replicas_needed(engine: Engine, costs: list[Cost], mix: Mix, most: int = 4096) -> int | None:
    """Fewest replicas, each with its share of the rate, that meet the level; None if none do."""

    def enough(count: int) -> bool:
        return share_met(engine, costs, mix, mix.rate / count)[0] >= mix.level.share

    if not enough(most):
        return None
    low, high = 0, 1
    while not enough(high):
        low, high = high, min(most, high * 2)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def plan_fleet(
    mix: Mix, checkpoint: ModelCost, measured: Engine, fixed_s: float
) -> list[dict[str, Any]]:
    """One row a device: replicas, cost, memory, and what a replica's users see.

    Args:
        mix: traffic, level, devices.
        checkpoint: what is served.
        measured: the engine as calibrated on the run's machine.
        fixed_s: there, before a prompt is scheduled.
    """
    rows: list[dict[str, Any]] = []
    choices: list[tuple[str, Engine | None, float, float]] = [
        ("the measured machine", measured, fixed_s, 0.0),
        *(
            (d.name, engine_on(d, mix, checkpoint), mix.fixed_ms / 1000, d.price_per_hour)
            for d in mix.hardware
        ),
    ]
    for name, engine, fixed, price in choices:
        row: dict[str, Any] = {"hardware": name, "replicas": None}
        rows.append(row)
        if engine is None:
            row["why"] = "the weights do not fit"
            continue
        costs = costs_of(mix, checkpoint, fixed)
        count = replicas_needed(engine, costs, mix)
        if count is None:
            row["why"] = "even an idle replica misses the service level"
            continue
        share, seen = share_met(engine, costs, mix, mix.rate / count)
        per_request = max((cost.prompt + cost.output) * cost.kv_bytes_per_token for cost in costs)
        row |= {
            "replicas": count,
            "price_per_hour": price * count,
            "price_per_1000": 1000 * price * count / (3600 * mix.rate),
            "share": share,
            "kv_requests": int(engine.kv_bytes // per_request),
            **seen,
        }
    return rows
