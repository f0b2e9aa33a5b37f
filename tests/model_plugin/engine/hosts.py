"""A small LLM with two vision adapters of different geometry, and their merged twins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from model_plugin.adapter_export import export_adapter, export_llm
from model_plugin.export import merge_checkpoint
from tests.model_plugin.engine.harness import Case, running_engine
from tests.model_plugin.test_adapters import write_run
from tests.oracle import Oracle

#: Of the images in these tests, the largest has this many tokens.
LARGEST = 120


@dataclass(frozen=True)
class World:
    """Folders by name: the LLM, its adapters, and each adapter merged.

    Attributes:
        llm: the LLM as transformers saves it.
        adapters, merged: by adapter.
    """

    llm: Path
    adapters: dict[str, Path]
    merged: dict[str, Path]

    def oracle(self, name: str) -> Oracle:
        """The reference for an adapter's answers."""
        return Oracle(self.merged[name])


def make_world(folder: Path) -> World:
    """Write everything below a folder."""
    bounds = {"max_pixels": LARGEST * 14 * 14, "min_pixels": 14 * 14}
    runs = {
        "docs": write_run(folder / "docs", resolution="native", preprocessor=bounds),
        "shapes": write_run(
            folder / "shapes", seed=7, image_size=56, patch_size=7, spatial_merge_size=2
        ),
        "other": write_run(folder / "other", seed=9),
    }
    first = load_file(runs["docs"] / "model.safetensors")
    llm = {n: t for n, t in first.items() if n.startswith("llm.") and ".lora_" not in n}
    for run in runs.values():
        own = load_file(run / "model.safetensors")
        save_file(own | llm, run / "model.safetensors")  # all of them of one LLM
    base = export_llm(runs["docs"], folder / "llm")
    adapters = {
        name: export_adapter(run, folder / f"{name}-adapter").folder for name, run in runs.items()
    }
    merged = {
        name: merge_checkpoint(adapter, folder / f"{name}-merged", base=base)
        for name, adapter in adapters.items()
    }
    return World(base, adapters, merged)


@contextmanager
def running_host(
    world: World, names: Sequence[str], *, rank: int = 8, **settings: Any
) -> Iterator[Any]:
    """An engine in this process with these adapters loaded; room for two, up to this rank."""
    from model_plugin.engine.adapters.flags import vllm_settings
    from model_plugin.engine.adapters.offline import AdapterLLM
    from model_plugin.engine.adapters.registry import set_registry
    from model_plugin.engine.adapters.settings import HostLimits

    limits = HostLimits(adapters=2, rank=rank, image_tokens=LARGEST)
    try:
        with running_engine(world.llm, **(settings | vllm_settings(limits))) as engine:
            host = AdapterLLM(engine, world.llm, limits)
            for name in names:
                host.load(name, world.adapters[name])
            yield host
    finally:
        set_registry(None)


def ask(
    host: Any, asked: Sequence[tuple[str | None, Case]], *, prompt_logprobs: bool = True
) -> list[Any]:
    """Greedy answers to all cases at once, each by its adapter; None is the LLM alone."""
    from vllm import SamplingParams

    params = [
        SamplingParams(
            temperature=0,
            max_tokens=case.max_tokens,
            ignore_eos=True,
            logprobs=-1,
            prompt_logprobs=-1 if prompt_logprobs else None,
        )
        for _, case in asked
    ]
    prompts = [
        case.request() if name is None else host.prompt(name, case.request())
        for name, case in asked
    ]
    loras = [None if name is None else host.request(name) for name, _ in asked]
    outputs: list[Any] = host.llm.generate(prompts, params, lora_request=loras, use_tqdm=False)
    return outputs
