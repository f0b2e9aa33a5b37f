"""Host time of a step's attention metadata on CUDA: ``python -m benchmarks.metadata``.

The CUDA backend's builder runs on the host before each step, so it can be timed without a GPU:
vLLM's and the plugin's code are the real ones, and the tensors lie in the CPU's memory. On a GPU,
vLLM's own part additionally plans FlashAttention 3's launch. Every request has an image of 1024
tokens behind it. With ``--before COMMIT``, the plugin of that commit takes turns with this one,
each in a process of its own.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
#: Requests of a step, and how many of them are prompts with an image; the others decode.
STEPS = ((256, 0), (1024, 0), (256, 1), (1024, 1))
IMAGE, TEXT = 1024, 32
WARM_UP = 200


def make_builders(path: Path) -> dict[str, Any]:
    """The stock builder and the plugin's, for the checkpoint at ``path``."""
    import torch
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.attention.backends import flash_attn
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    from model_plugin.engine.attention_cuda import SpanFlashAttentionMetadataBuilder

    # Facts that vLLM looks up in layers and process groups, of which there are none here.
    flash_attn.get_flash_attn_version = lambda *_, **__: 3
    flash_attn.get_scheduler_metadata = lambda **_: None
    flash_attn.get_num_attention_heads_from_layers = lambda *_: 28
    flash_attn.get_dcp_world_size_and_rank = lambda *_: (1, 0)
    flash_attn._get_sliding_window_configs = lambda _: {(-1, -1)}
    config = EngineArgs(
        model=str(path),
        dtype="bfloat16",
        max_model_len=1024,
        max_num_seqs=1024,
        max_num_batched_tokens=4096,
    ).create_engine_config()
    spec = FullAttentionSpec(block_size=16, num_kv_heads=4, head_size=128, dtype=torch.bfloat16)
    kinds = {
        "vLLM": flash_attn.FlashAttentionMetadataBuilder,
        "plugin": SpanFlashAttentionMetadataBuilder,
    }
    return {
        name: kind(spec, ["layer"], config, torch.device("cpu")) for name, kind in kinds.items()
    }


def make_step(requests: int, prompts: int) -> Any:
    """A step as vLLM's model runner describes it; prompts come last, as vLLM sorts them."""
    import numpy as np
    import torch
    from vllm.v1.attention.backend import CommonAttentionMetadata

    counts = np.ones(requests, dtype=np.int32)
    counts[requests - prompts :] = TEXT + IMAGE + TEXT
    starts = torch.from_numpy(np.cumsum([0, *counts]).astype(np.int32))
    lengths = torch.full((requests,), 2 * TEXT + IMAGE + 100, dtype=torch.int32)
    lengths[requests - prompts :] = TEXT + IMAGE + TEXT
    tokens = int(starts[-1])
    return CommonAttentionMetadata(
        query_start_loc=starts,
        query_start_loc_cpu=starts,
        seq_lens=lengths,
        seq_lens_cpu_upper_bound=lengths,
        num_reqs=requests,
        num_actual_tokens=tokens,
        max_query_len=int(counts.max()),
        max_seq_len=int(lengths.max()),
        block_table_tensor=torch.zeros(requests, 128, dtype=torch.int32),
        slot_mapping=torch.zeros(tokens, dtype=torch.int64),
        mm_req_doc_ranges={i: [(TEXT, TEXT + IMAGE - 1)] for i in range(requests)},
    )


def measure(repeats: int) -> dict[str, dict[str, float]]:
    """Median microseconds of ``build``, by step and builder, which take turns."""
    from model_plugin.engine.check_end_to_end import random_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        builders = make_builders(random_checkpoint(Path(folder)))
    found = {}
    for requests, prompts in STEPS:
        step = make_step(requests, prompts)
        # vLLM's own handling of image ranges is for FlashAttention 4; the floor is causal text.
        given = {"vLLM": replace(step, mm_req_doc_ranges=None), "plugin": step}
        times: dict[str, list[float]] = {name: [] for name in builders}
        for turn in range(WARM_UP + repeats):
            for name, builder in builders.items():
                taken = _microseconds(builder.build, given[name])
                if turn >= WARM_UP:
                    times[name].append(taken)
        found[f"{requests}+{prompts}"] = {name: median(taken) for name, taken in times.items()}
    return found


def _microseconds(build: Callable[[int, Any], Any], step: Any) -> float:
    begin = time.perf_counter_ns()
    build(0, step)
    return (time.perf_counter_ns() - begin) / 1e3


def in_process(folder: Path, repeats: int) -> dict[str, dict[str, float]]:
    """``measure`` in a process that imports the plugin from ``folder``."""
    command = [sys.executable, "-m", "benchmarks.metadata", "--json", "--repeats", str(repeats)]
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def extract(commit: str, folder: Path) -> None:
    """The packages of a commit, of which older ones have fewer."""
    git = ["git", "-C", str(ROOT)]
    listed = subprocess.run(
        [*git, "ls-tree", "--name-only", commit], stdout=subprocess.PIPE, check=True
    )
    packages = {"model_plugin", "vora_core"} & set(listed.stdout.decode().split())
    archived = subprocess.run(
        [*git, "archive", commit, *packages], stdout=subprocess.PIPE, check=True
    )
    with tarfile.open(fileobj=io.BytesIO(archived.stdout)) as tar:
        tar.extractall(folder, filter="data")


def table(runs: dict[str, list[dict[str, dict[str, float]]]]) -> str:
    """Medians over runs, one line for each step."""
    lines = [
        "| requests that decode | prompts with an image | vLLM's builder us | "
        + " | ".join(f"{name} us" for name in runs)
        + " |",
        "|---" * (3 + len(runs)) + "|",
    ]
    for requests, prompts in STEPS:
        key = f"{requests}+{prompts}"
        stock = median(run[key]["vLLM"] for found in runs.values() for run in found)
        ours = (median(run[key]["plugin"] for run in found) for found in runs.values())
        cells = [f"{value:.1f}" for value in (stock, *ours)]
        lines.append(f"| {requests - prompts} | {prompts} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.metadata", description=__doc__)
    parser.add_argument("--repeats", type=int, default=2000, help="builds that are timed [2000]")
    parser.add_argument("--turns", type=int, default=3, help="processes of each commit [3]")
    parser.add_argument("--before", metavar="COMMIT", help="a commit to compare with")
    parser.add_argument("--json", action="store_true", help="one process, numbers only")
    options = parser.parse_args()
    # Before vLLM is imported: its logs would mix with the numbers.
    os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}
    if options.json:
        from model_plugin import register
        from model_plugin.engine import mark_cpu_build

        mark_cpu_build()
        register()
        sys.stdout.write(json.dumps(measure(options.repeats)) + "\n")
        return
    runs: dict[str, list[Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        places = {"plugin": ROOT}
        if options.before:
            extract(options.before, Path(folder))
            places = {f"plugin at {options.before}": Path(folder), "plugin": ROOT}
        for _ in range(options.turns):
            for name, place in places.items():
                runs.setdefault(name, []).append(in_process(place, options.repeats))
    sys.stdout.write(
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, load average "
        f"{os.getloadavg()[0]:.1f} at the end; Python {platform.python_version()}; medians of "
        f"{options.turns} processes and {options.repeats} builds in each.\n\n{table(runs)}\n"
    )


if __name__ == "__main__":
    main()
