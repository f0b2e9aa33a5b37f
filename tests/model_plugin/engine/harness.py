"""Real vLLM engines in this process, and their answers beside the oracle's."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from tests.oracle import Oracle

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")

BLOCK = 32
TOLERANCE = 1e-4

Array = npt.NDArray[np.float32]


@dataclass
class Case:
    """A raw prompt and its images."""

    prompt: str
    images: list[Image.Image] = field(default_factory=list)
    max_tokens: int = 6

    def request(self) -> dict[str, Any]:
        """The prompt as vLLM takes it."""
        prompt: dict[str, Any] = {"prompt": self.prompt}
        if self.images:
            prompt["multi_modal_data"] = {"image": self.images}
        return prompt


@contextmanager
def running_engine(path: str | Path, *, processes: bool = False, **settings: Any) -> Iterator[Any]:
    """A vLLM engine: fp32, eager and small unless told otherwise.

    It runs in this process, or, as vLLM's servers do, in ``processes`` of its own.
    """
    saved = dict(os.environ)
    set_num_threads = torch.set_num_threads
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(int(processes))
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    import vllm
    from vllm.distributed import cleanup_dist_env_and_memory

    defaults: dict[str, Any] = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 1024,
        "max_num_seqs": 8,
        "block_size": BLOCK,
        "max_logprobs": -1,
        "disable_log_stats": False,
        "seed": 0,
    }
    engine = None
    try:
        engine = vllm.LLM(model=str(path), **(defaults | settings))
        yield engine
    finally:
        if engine is not None:
            engine.llm_engine.engine_core.shutdown()
        del engine
        cleanup_dist_env_and_memory()
        gc.collect()
        torch.set_num_threads = set_num_threads
        os.environ.clear()
        os.environ.update(saved)


def scheduler_of(engine: Any) -> Any:
    """The scheduler of an in-process engine."""
    return engine.llm_engine.engine_core.engine_core.scheduler


@contextmanager
def recorded_preemptions(engine: Any) -> Iterator[list[str]]:
    """Requests of an in-process engine that lose their place in the cache, in order."""
    scheduler, preempted = scheduler_of(engine), []
    preempt = scheduler._preempt_request

    def record(request: Any, *rest: Any, **named: Any) -> Any:
        preempted.append(request.request_id)
        return preempt(request, *rest, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "_preempt_request", record)
        yield preempted


def generate(engine: Any, cases: Sequence[Case], *, prompt_logprobs: bool = True) -> list[Any]:
    """Greedy answers to all cases at once, with full log-probabilities.

    Asking for the prompt's log-probabilities keeps vLLM from reading the prefix cache.
    """
    from vllm import SamplingParams

    params = [
        SamplingParams(
            temperature=0,
            max_tokens=case.max_tokens,
            ignore_eos=True,
            logprobs=-1,
            prompt_logprobs=-1 if prompt_logprobs else None,
        )
        for case in cases
    ]
    outputs: list[Any] = engine.generate([case.request() for case in cases], params, use_tqdm=False)
    return outputs


def dense(row: Any) -> Array:
    """vLLM's {token id: Logprob} as an array over the vocabulary."""
    values = np.full(len(row), np.nan, dtype=np.float32)
    for token, entry in row.items():
        values[token] = entry.logprob
    return values


def difference(oracle: Oracle, case: Case, output: Any) -> float:
    """Largest difference in log-probability between an answer and the oracle, at every position.

    The oracle follows the answer's own tokens, so that one wrong token is one difference.
    """
    answer = list(output.outputs[0].token_ids)
    chunks = oracle.chunks(case.prompt)
    expected = oracle.logprobs([*chunks[:-1], chunks[-1] + answer], case.images)
    length = len(output.prompt_token_ids)
    assert expected.shape[0] == length + len(answer)
    worst = max(
        float(np.abs(dense(row) - expected[length - 1 + i]).max())
        for i, row in enumerate(output.outputs[0].logprobs)
    )
    for i, row in enumerate((output.prompt_logprobs or [None])[1:]):
        worst = max(worst, float(np.abs(dense(row) - expected[i]).max()))
    return worst


def assert_exact(oracle: Oracle, cases: Sequence[Case], outputs: Sequence[Any]) -> None:
    """Every answer has the oracle's tokens and log-probabilities."""
    for case, output in zip(cases, outputs, strict=True):
        greedy = oracle.greedy(case.prompt, case.images, case.max_tokens)
        assert list(output.outputs[0].token_ids) == greedy, case.prompt
        assert difference(oracle, case, output) < TOLERANCE, case.prompt


def engine_config(path: str | Path, **settings: Any) -> Any:
    """vLLM's configuration for a checkpoint, all hooks run, nothing loaded."""
    from vllm.engine.arg_utils import EngineArgs

    defaults = {"dtype": "float32", "max_model_len": 1024, "max_num_seqs": 8}
    return EngineArgs(model=str(path), **(defaults | settings)).create_engine_config()


@contextmanager
def bare_model(path: str | Path, **settings: Any) -> Iterator[Any]:
    """vLLM's model of a checkpoint, no weights loaded, no engine around it."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import (
        cleanup_dist_env_and_memory,
        init_distributed_environment,
        initialize_model_parallel,
    )
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    config = engine_config(path, **settings)
    saved = dict(os.environ)
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            set_current_vllm_config(config),
            set_default_torch_dtype(config.model_config.dtype),
        ):
            init_distributed_environment(1, 0, f"file://{folder}/store", 0, "gloo")
            initialize_model_parallel(1, 1)
            yield initialize_model(vllm_config=config)
    finally:
        cleanup_dist_env_and_memory()
        os.environ.clear()
        os.environ.update(saved)
