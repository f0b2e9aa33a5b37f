"""Run-time LoRA on CPU: the rows of each adapter together, and no others.

vLLM's own code for CPU gathers a copy of the factors for every token, and gives tokens that have no
adapter the last place's factors (index -1). Here each adapter's rows are multiplied at once; rows
without an adapter are not touched, so that the LLM's own text stays what it is, bit for bit.
"""

from typing import Any

import torch
from torch.nn import functional
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU


class GroupedLoRA(PunicaWrapperCPU):
    """vLLM's interface to LoRA kernels, for linear layers on CPU."""

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Take the adapter of each token of the next step, and sort the tokens by it."""
        super().update_metadata(*args, **kwargs)
        indices = self.token_lora_indices
        places = [int(place) for place in indices.unique() if place >= 0]
        self._rows = [(place, (indices == place).nonzero()[:, 0]) for place in places]

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: tuple[torch.Tensor, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add each adapter's update to its rows.

        Args:
            y: (tokens, out), of all slices side by side; changed in place.
            x: (tokens, in).
            lora_a_stacked: of each slice, (places, 1, rank, in).
            lora_b_stacked: of each slice, (places, 1, out of the slice, rank).
            scale: factor on the update.
            output_slices: out of each slice.
            buffer: not needed.
            **kwargs: not needed.
        """
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        for place, rows in self._rows:
            own = x[rows]
            start = 0
            for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                inner = functional.linear(own, a[place, 0].to(own.dtype))
                update = functional.linear(inner, b[place, 0].to(own.dtype))
                part = y[:, start : start + width]
                part.index_add_(0, rows, update[:, :width].to(y.dtype), alpha=scale)
                start += width
