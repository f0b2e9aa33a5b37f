"""Accuracy and latency of checkpoints that vLLM serves behind the gateway."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.accuracy_cost.systems import System
from loadtest.cost.checkpoint import read_checkpoint
from loadtest.drive.runner import Runner
from loadtest.drive.store import RunFolder
from loadtest.servers import Server
from loadtest.settings import EngineSettings, Images, RunSettings, ServerSpec, Workload
from vora_serve.evaluation.client import Endpoint, ask_all
from vora_serve.world.suite import Item, is_right

#: One core each: engine and client share two.
ENGINE = EngineSettings(
    args=["--dtype", "float32", "--max-model-len", "512", "--enforce-eager", "--max-num-seqs", "8"],
    env={"VLLM_CPU_KVCACHE_SPACE": "1"},
    start_timeout_s=400,
)
#: What the load test sends, in pixels and in words.
IMAGE, WORDS = (160, 160), 8


def specs(system: System, checkpoint: Path) -> tuple[ServerSpec, ServerSpec]:
    """The engine of a checkpoint, and the gateway in front of it."""
    engine = f"{system.name}-engine"
    return (
        ServerSpec(name=engine, kind="stock" if system.encoder else "vora", model=str(checkpoint)),
        ServerSpec(name=system.name, kind="gateway", upstream=engine),
    )


def accuracy(
    system: System, checkpoint: Path, items: list[Item], logs: Path, blank: bool
) -> dict[str, Any]:
    """Share of right answers of each family, asked through the gateway.

    Args:
        system: which.
        checkpoint: its folder.
        items: the questions.
        logs: folder for the servers' output.
        blank: ask about blank images as well.
    """
    below, above = specs(system, checkpoint)
    with ExitStack() as stack:
        engine = Server(below, ENGINE, logs)
        stack.callback(engine.stop)
        engine.start()
        gateway = Server(above, ENGINE, logs, engine)
        stack.callback(gateway.stop)
        gateway.start()
        endpoint = Endpoint(gateway.target.url, gateway.target.model, concurrency=8)
        found = {"right": _share(endpoint, items)}
        if blank:
            found["blank"] = _share(endpoint, [item.blank() for item in items])
    return found


def latency(systems: dict[System, Path], folder: Path, requests: int, repeats: int) -> None:
    """Measure time to first token through the gateway, all systems in one run of the load test."""
    servers = [spec for system, path in systems.items() for spec in specs(system, path)]
    names = [system.name for system in systems]
    settings = RunSettings(
        name="accuracy beside cost",
        servers=servers,
        compare=[(name, names[0]) for name in names[1:]],
        engine=ENGINE,
        workloads=[
            Workload(
                name="one-image",
                concurrency=[1],
                requests=requests,
                warmup=3,
                text_tokens=WORDS,
                output_tokens=4,
                images=Images(sizes=[IMAGE], format="png"),
                servers=names,
            )
        ],
        repeats=repeats,
        order="abba",
    )
    Runner(settings, RunFolder(folder)).run()


def read_latency(folder: Path) -> dict[str, list[list[float]]]:
    """Times to first token by system, seconds, round by round."""
    found: dict[str, list[list[float]]] = {}
    for point in sorted(path.name for path in (folder / "rounds").glob("one-image*")):
        for _, results in RunFolder(folder).rounds(point):
            for name, result in results.items():
                times = [
                    t for t, e in zip(result["ttft_s"], result["errors"], strict=True) if not e
                ]
                found.setdefault(name, []).append(times)
    return found


def read_text_tokens(folder: Path) -> dict[str, int]:
    """Prompt tokens besides the image, by system, as the servers counted them."""
    return {
        name: int(result["text_prompt_tokens"])
        for point in sorted(path.name for path in (folder / "rounds").glob("one-image*"))
        for _, results in RunFolder(folder).rounds(point)
        for name, result in results.items()
        if result["text_prompt_tokens"] is not None
    }


def image_tokens(checkpoint: Path) -> int:
    """Tokens of an image of the load test."""
    return read_checkpoint(checkpoint).image_tokens(IMAGE)


def prefill_gflop(checkpoint: Path, text_tokens: int) -> float:
    """Operations until the first token of a request of the load test, counted, in 10^9."""
    return read_checkpoint(checkpoint).prefill_flops(text_tokens, [IMAGE]) / 1e9


def _share(endpoint: Endpoint, items: list[Item]) -> dict[str, float]:
    replies = ask_all(endpoint, [(item.images, item.question) for item in items])
    right: dict[str, list[bool]] = {}
    for reply, item in zip(replies, items, strict=True):
        right.setdefault(item.group, []).append(is_right(reply, item.answer))
    return {group: sum(hits) / len(hits) for group, hits in right.items()}


def machine() -> dict[str, Any]:
    """When and where something was measured."""
    return {"date": time.strftime("%Y-%m-%d"), "load": os.getloadavg()[0]}
