"""Fake CUDA graphs: what was captured runs again on replay.

vLLM captures a function of buffers that keep their place, and metadata whose numbers on the host
are those of the capture. Replay calls that function once more. Unlike the real thing, Python code
of the captured function runs again; everything that it was given is as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch


class FakeGraph:
    """In place of ``torch.cuda.CUDAGraph``."""

    #: Replays of all graphs.
    replays = 0

    def __init__(self) -> None:
        self.run: Callable[[], None] | None = None

    def replay(self) -> None:
        """Run what was captured."""
        assert self.run is not None
        FakeGraph.replays += 1
        self.run()


def install() -> None:
    """Let Model Runner V2 capture and replay fake graphs."""
    from vllm.v1.worker.gpu import cudagraph_utils
    from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager

    last = SimpleNamespace(run=None)
    capture = CudaGraphManager.capture

    def capture_with_fakes(
        self: Any, create_forward: Callable[..., Callable[[Any], None]], *rest: Any, **named: Any
    ) -> None:
        def create(*arguments: Any, **settings: Any) -> Callable[[Any], None]:
            forward = create_forward(*arguments, **settings)

            def run(mode: Any) -> None:
                last.run = lambda: forward(mode)
                forward(mode)

            return run

        capture(self, create, *rest, **named)

    @contextmanager
    def capturing(graph: FakeGraph, *_: Any, **__: Any) -> Iterator[None]:
        yield
        graph.run = last.run

    CudaGraphManager.capture = capture_with_fakes
    cudagraph_utils.graph_capture = lambda **_: nullcontext()
    cudagraph_utils.capture_pool = lambda *_: nullcontext()
    cudagraph_utils.current_stream = lambda: None
    torch.cuda.CUDAGraph = FakeGraph
    torch.cuda.graph = capturing
