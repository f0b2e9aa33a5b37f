"""vLLM beside the Hugging Face side, on random weights and over several tokens."""

from __future__ import annotations

import os
import sys

import torch

from benchmarks.gpu.programs import run_all
from benchmarks.gpu.records import Write
from model_plugin.engine import mark_cpu_build


def measure(rehearse: bool, write: Write) -> None:
    """One row: whether they agree, and the numbers."""
    mark_cpu_build()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from model_plugin.engine.check_end_to_end import compare

    cuda = torch.cuda.is_available()
    good, said = compare(None, torch.bfloat16 if cuda else torch.float32, eager=not cuda)
    write({"how": "compiled, with graphs" if cuda else "eager", "good": good, "said": said})


if __name__ == "__main__":
    run_all(measure, "--rehearse" in sys.argv)
