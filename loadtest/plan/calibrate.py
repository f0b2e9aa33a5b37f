"""What an engine reaches, from a run's single requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loadtest.cost import ModelCost
from loadtest.plan.simulate import Cost, Engine
from vora_core.errors import ConfigError


@dataclass(frozen=True)
class Calibration:
    """What was fitted.

    Args:
        point: the measured point that it rests on.
        flops_per_s: prefill operations per second.
        bytes_per_s: bytes read per second while decoding, overhead of a step included.
        fixed_s: of a request, before its prompt is scheduled.
    """

    point: str
    flops_per_s: float
    bytes_per_s: float
    fixed_s: float

    def engine(self, kv_bytes: float, max_tokens: int = 8192, max_sequences: int = 256) -> Engine:
        """The same device with this cache."""
        return Engine(self.flops_per_s, self.bytes_per_s, 0.0, kv_bytes, max_tokens, max_sequences)


def checkpoint_of(found: dict[str, Any], server: str) -> ModelCost:
    """The checkpoint behind a server of a run.

    Raises:
        ConfigError: the run does not know it.
    """
    try:
        return ModelCost.from_json(found["head"]["checkpoints"][server])
    except KeyError:
        known = ", ".join(found["head"]["checkpoints"]) or "none"
        raise ConfigError(
            f"The run knows no checkpoint of a server {server!r}; it knows those of: {known}."
        ) from None


def calibrate(found: dict[str, Any], server: str, width: int = 2) -> Calibration:
    """Fit a server's speed to its single-request points.

    The point with the most prefill work decides: its median time to first token, less what the
    engine's own metrics say passes before the prompt is scheduled, over the operations on paper;
    and its median time per token over the bytes on paper.

    Args:
        found: results of a run.
        server: whose.
        width: bytes of a weight as served.

    Raises:
        ConfigError: there is no single-request point of it without failures.
    """
    checkpoint = checkpoint_of(found, server)
    best: tuple[float, Calibration] | None = None
    for point in found["points"]:
        got = point["servers"].get(server)
        if point["concurrency"] != 1 or not got or not got.get("expected") or not got["requests"]:
            continue
        flops = got["expected"]["prefill_tflop"] * 1e12
        spent = got["breakdown_ms"]
        fixed = max(0.0, spent.get("transport", 0.0) + spent.get("processing", 0.0)) / 1000
        ttft = got["ttft_ms"]["p50"] / 1000
        fixed = min(fixed, 0.9 * ttft)
        context = round(got["prompt_tokens"])
        read = checkpoint.decode_bytes(context, width=width)
        fit = Calibration(
            point["id"],
            flops / (ttft - fixed),
            read / (got["tpot_ms"]["p50"] / 1000),
            fixed,
        )
        if best is None or flops > best[0]:
            best = (flops, fit)
    if best is None:
        raise ConfigError(f"The run has no point with one request at a time for {server!r}.")
    return best[1]


def cost_of(
    checkpoint: ModelCost,
    text: int,
    images: list[tuple[int, int]],
    output: int,
    fixed_s: float,
    width: int = 2,
) -> Cost:
    """What a kind of request costs a checkpoint.

    Args:
        checkpoint: which.
        text: tokens of text in the prompt.
        images: their sizes in pixels.
        output: tokens answered.
        fixed_s: before the prompt is scheduled.
        width: bytes of a weight as served.
    """
    prompt = text + sum(checkpoint.image_tokens(size) for size in images)
    return Cost(
        prompt=prompt,
        output=output,
        prefill_flops=checkpoint.prefill_flops(text, images),
        decode_flops=checkpoint.decode_flops(prompt + output // 2),
        weight_bytes=checkpoint.decode_bytes(0, width=width),
        kv_bytes_per_token=checkpoint.kv_bytes(1, width),
        fixed_s=fixed_s,
    )
