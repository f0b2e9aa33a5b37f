"""Imported by Python at start, in vLLM's subprocesses too: Triton's CUDA driver counts as there."""

import contextlib

with contextlib.suppress(ImportError):
    from triton.backends.nvidia.driver import CudaDriver

    CudaDriver.is_active = staticmethod(lambda: True)
