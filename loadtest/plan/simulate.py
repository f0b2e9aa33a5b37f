"""One engine with continuous batching, simulated step by step.

A step takes in waiting requests in order while their prompts fit into the token budget and their
keys and values into the cache, and gives one token to each request that already decodes. It lasts

    overhead + max(FLOPs / flops_per_s, bytes / bytes_per_s)

where the bytes are the weights, once, and the keys and values of every sequence that decodes. The
three constants come from measured single requests, or from a device's data sheet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Cost:
    """What one kind of request costs.

    Args:
        prompt: tokens in, image tokens among them.
        output: tokens out.
        prefill_flops: operations of its prompt, vision included.
        decode_flops: operations of one of its output tokens.
        weight_bytes: read in every step.
        kv_bytes_per_token: of keys and values.
        fixed_s: before its prompt can be scheduled: HTTP, decoding and preparing its images.
    """

    prompt: int
    output: int
    prefill_flops: float
    decode_flops: float
    weight_bytes: float
    kv_bytes_per_token: float
    fixed_s: float = 0.0


@dataclass(frozen=True)
class Engine:
    """An engine on a device.

    Args:
        flops_per_s, bytes_per_s: what it reaches, not its peak.
        overhead_s: of a step.
        kv_bytes: of its cache.
        max_tokens: budget of a step.
        max_sequences: under way at a time.
    """

    flops_per_s: float
    bytes_per_s: float
    overhead_s: float
    kv_bytes: float
    max_tokens: int = 8192
    max_sequences: int = 256


@dataclass
class Request:
    """One simulated request; times in seconds from the start."""

    arrival: float
    cost: Cost
    first_token: float = field(default=float("nan"))
    done: float = field(default=float("nan"))
    made: int = 0

    @property
    def ttft(self) -> float:
        """Time to first token."""
        return self.first_token - self.arrival

    @property
    def tpot(self) -> float:
        """Time per output token after the first."""
        return (self.done - self.first_token) / max(1, self.cost.output - 1)


def poisson_arrivals(
    costs: Sequence[Cost], weights: Sequence[float], rate: float, count: int, seed: int
) -> list[Request]:
    """``count`` requests of a mix at ``rate`` per second."""
    random = np.random.default_rng(seed)
    shares = np.asarray(weights, float) / float(np.sum(weights))
    times = np.cumsum(random.exponential(1 / rate, count))
    kinds = random.choice(len(costs), count, p=shares)
    return [Request(float(t), costs[k]) for t, k in zip(times, kinds, strict=True)]


def simulate(
    engine: Engine, requests: Sequence[Request], concurrency: int | None = None
) -> list[Request]:
    """Run an engine over requests.

    Args:
        engine: which.
        requests: in order of arrival; with ``concurrency``, arrivals are ignored.
        concurrency: closed loop with so many under way, the next one sent when one is done.

    Returns:
        The requests, with their times. A request whose keys and values exceed the whole cache never
        gets a token.
    """
    ahead = deque(requests)
    coming: deque[Request] = deque()
    ready: deque[Request] = deque()
    active: list[Request] = []
    now = held = 0.0

    def kv(request: Request) -> float:
        return (request.cost.prompt + request.cost.output) * request.cost.kv_bytes_per_token

    while ahead or coming or ready or active:
        while ahead:
            if concurrency is not None:
                if len(coming) + len(ready) + len(active) >= concurrency:
                    break
                ahead[0].arrival = now
            elif ahead[0].arrival > now:
                break
            coming.append(ahead.popleft())
        while coming and coming[0].arrival + coming[0].cost.fixed_s <= now:
            request = coming.popleft()
            if kv(request) <= engine.kv_bytes:
                ready.append(request)
        if not ready and not active:
            times = [r.arrival + r.cost.fixed_s for r in coming]
            times += [ahead[0].arrival] if ahead and concurrency is None else []
            now = max(now, min(times)) if times else now
            continue
        begun: list[Request] = []
        tokens = len(active)
        while ready and len(active) + len(begun) < engine.max_sequences:
            request = ready[0]
            if (begun or active) and tokens + request.cost.prompt > engine.max_tokens:
                break
            if held + kv(request) > engine.kv_bytes:
                break
            begun.append(ready.popleft())
            held += kv(request)
            tokens += request.cost.prompt
        now += _step_s(engine, active, begun)
        for request in begun:
            request.first_token = now
        active += begun
        for request in active:
            request.made += 1
            if request.made >= request.cost.output:
                request.done = now
                held -= kv(request)
        active = [request for request in active if request.made < request.cost.output]
    return list(requests)


def _step_s(engine: Engine, active: Sequence[Request], begun: Sequence[Request]) -> float:
    """Seconds of a step that decodes ``active`` and prefills ``begun``."""
    flops = sum(request.cost.decode_flops for request in active)
    flops += sum(request.cost.prefill_flops for request in begun)
    read = max(request.cost.weight_bytes for request in [*active, *begun])
    read += sum(
        (request.cost.prompt + request.made) * request.cost.kv_bytes_per_token for request in active
    )
    return engine.overhead_s + max(flops / engine.flops_per_s, read / engine.bytes_per_s)
