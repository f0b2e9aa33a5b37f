"""Whether a run is well: numbers that are not finite, spikes of the loss, a request to stop."""

import logging
import math
import signal
import statistics
import threading
from collections import deque
from collections.abc import Iterable
from types import FrameType, TracebackType
from typing import Self

import torch
from torch.distributed.tensor import DTensor

from model_plugin import VoRAError

log = logging.getLogger(__name__)
#: Steps that a burst, and a spike, are measured against.
_WINDOW = 100
#: So many times ``max_nonfinite_steps`` within the window are a burst too.
_SCATTERED = 5
_SPIKE_DEVIATIONS = 6.0
_SPIKE_HISTORY = 20


class TrainingStopped(VoRAError, RuntimeError):
    """A run stopped before its end; the sentence names why, and the last good state."""


class Health:
    """Steps without finite numbers, and spikes.

    Args:
        limit: steps in a row without finite numbers that are a burst.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.skipped = self.spikes = self.in_a_row = 0
        self._recent: deque[bool] = deque(maxlen=_WINDOW)
        self._losses: deque[float] = deque(maxlen=_WINDOW)

    def count(self, step: int, loss: float, norm: float, applied: bool) -> None:
        """Count a step in.

        Args:
            step: its number, from 0.
            loss: its loss.
            norm: its gradients' norm.
            applied: whether the weights were updated by it.
        """
        self._recent.append(not applied)
        if not applied:
            self.skipped += 1
            self.in_a_row += 1
            log.warning(
                "Step %d is skipped: its loss is %g and its gradient norm %g.", step + 1, loss, norm
            )
            return
        self.in_a_row = 0
        if self._is_spike(loss):
            self.spikes += 1
            log.warning("The loss of step %d, %.4g, is a spike.", step + 1, loss)
        self._losses.append(loss)

    @property
    def is_burst(self) -> bool:
        """Whether too many steps were skipped of late."""
        limit = self.limit
        return self.in_a_row >= limit or sum(self._recent) >= _SCATTERED * limit

    def _is_spike(self, loss: float) -> bool:
        """Whether a loss is far above those of the last steps, by their median deviation."""
        if len(self._losses) < _SPIKE_HISTORY:
            return False
        middle = statistics.median(self._losses)
        spread = statistics.median(abs(value - middle) for value in self._losses)
        return loss > middle + _SPIKE_DEVIATIONS * 1.4826 * max(spread, 0.01 * abs(middle))


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether every value of some tensors, or of this process's shards of them, is finite."""
    local = [t.to_local() if isinstance(t, DTensor) else t for t in (t.detach() for t in tensors)]
    filled = [tensor for tensor in local if tensor.numel()]
    if not filled:
        return True
    return math.isfinite(float(torch.nn.utils.get_total_norm(filled, norm_type=math.inf)))


class StopRequest:
    """Notes SIGTERM while a run lasts, so that it stops between two steps with its state saved."""

    def __init__(self) -> None:
        self.received = False
        self._before: signal.Handlers | object = None

    def __enter__(self) -> Self:
        # Python allows handlers in the main thread alone.
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True
