"""Compiles vLLM's Triton attention kernel, with and without image spans, for an absent GPU.

    python -m tests.cuda_stand_in.compile_triton 90

Prints the kernels and the size of their machine code as JSON. Nothing is launched.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit


class FakeDriver:
    """What Triton asks of a CUDA driver before it compiles."""

    class utils:
        """Properties of an H100."""

        @staticmethod
        def get_device_properties(device: int) -> dict[str, int]:
            return {
                "max_shared_mem": 232448,
                "multiprocessor_count": 132,
                "warpSize": 32,
                "max_num_regs": 65536,
            }

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def main(capability: int) -> None:
    """Compile and print."""
    driver.set_active(FakeDriver(capability))
    compiled: list[dict[str, Any]] = []
    run = jit.JITFunction.run

    def compile_only(self: Any, *arguments: Any, **settings: Any) -> Any:
        kernel = run(self, *arguments, **settings | {"warmup": True})
        compiled.append({"kernel": self.__name__, "bytes": len(kernel.asm["cubin"])})
        return kernel

    jit.JITFunction.run = compile_only
    from tests.cuda_stand_in import machine

    machine.install()
    from model_plugin.engine.check_batches import prefill
    from model_plugin.engine.check_kernels import _triton

    generator = torch.Generator().manual_seed(0)
    batch = prefill(
        generator, 1, 256, 28, 4, 128, 16, dtype=torch.bfloat16, device=torch.device("cpu")
    )
    for spans in (True, False):
        _triton(batch, spans=spans)()
    sys.stdout.write(json.dumps({"triton": triton.__version__, "compiled": compiled}) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
