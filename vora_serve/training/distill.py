"""Block-wise distillation from a vision teacher (section 3.2, equations 1 to 3).

Block i of the LLM, seen through an auxiliary head, should say of each image token what block i of
the teacher says of it; the loss is the cosine distance. Heads and teacher are dropped afterwards.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from model_plugin import ConfigError
from vora_serve.training.features import PixelBridge
from vora_serve.training.recipe import Distillation

#: Epsilon of the auxiliary heads' norm, whatever the LLM's own.
AUX_EPS = 1e-5


class Teacher(nn.Module):
    """A frozen vision transformer of transformers' (AIMv2, CLIP, SigLIP, DINOv2).

    Args:
        vision: the vision tower; put into evaluation mode and frozen.
        bridge: turns the model's pixels into the teacher's; without it they must be the same.

    Raises:
        ConfigError: its blocks cannot be found.
    """

    def __init__(self, vision: nn.Module, bridge: PixelBridge | None = None) -> None:
        super().__init__()
        self.bridge = bridge
        self.vision = vision.eval().requires_grad_(False)
        config: Any = vision.config
        self.patch_size = int(config.patch_size)
        self.image_size = int(config.image_size)
        self.hidden_size = int(config.hidden_size)
        self.blocks = [vision_blocks(vision)]  # in a list, so that it is no second child

    @property
    def depth(self) -> int:
        """N_vit: number of blocks."""
        return len(self.blocks[0])

    def train(self, mode: bool = True) -> "Teacher":
        """A teacher does not train."""
        return super().train(False)

    @torch.no_grad()
    def forward(
        self, pixels: torch.Tensor, wanted: list[int], which: Literal["input", "output"]
    ) -> list[torch.Tensor]:
        """Hidden states of some blocks.

        Args:
            pixels: float (B, 3, S, S); (B, 3, H, W) of any size where there is a bridge.
            wanted: numbers of blocks.
            which: states before or after a block.

        Returns:
            For each block, (B, N, D), N patches; a class token, and registers, are left out.
        """
        if self.bridge is not None:
            pixels = self.bridge(pixels)
        with captured(self.blocks[0], wanted, which) as states:
            self.vision(pixel_values=pixels.to(next(self.vision.parameters()).dtype))
        patches = (pixels.shape[-1] // self.patch_size) ** 2
        return [states[i][:, -patches:] for i in wanted]


def vision_blocks(vision: nn.Module) -> list[nn.Module]:
    """The blocks of a vision tower, in order.

    Raises:
        ConfigError: it has no list of blocks.
    """
    lists = [list(m) for m in vision.modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    if not lists:
        raise ConfigError(f"{type(vision).__name__} has no list of blocks to learn from.")
    return max(lists, key=len)


class AuxHeads(nn.Module):
    """One head a distilled block: RMSNorm and a linear layer without bias (equation 1).

    Args:
        blocks: numbers of the distilled blocks.
        llm_size: width of the LLM.
        teacher_size: width of the teacher.
    """

    def __init__(self, blocks: list[int], llm_size: int, teacher_size: int) -> None:
        super().__init__()
        self.blocks = blocks
        for block in blocks:
            head = nn.Sequential(
                nn.RMSNorm(llm_size, eps=AUX_EPS), nn.Linear(llm_size, teacher_size, bias=False)
            )
            self.add_module(f"aux_layer_{block}", head)

    def forward(
        self, hidden: dict[int, torch.Tensor], targets: list[torch.Tensor]
    ) -> dict[int, torch.Tensor]:
        """Distillation loss of each block (equation 2).

        Args:
            hidden: for each block, (tokens, llm_size), image tokens only.
            targets: for each block, (tokens, teacher_size).

        Returns:
            For each block, mean over tokens of 1 - cosine similarity; scalars.
        """
        losses = {}
        for block, target in zip(self.blocks, targets, strict=True):
            guess = self.get_submodule(f"aux_layer_{block}")(hidden[block].float())
            similarity = functional.cosine_similarity(guess.float(), target.float(), dim=-1)
            losses[block] = (1 - similarity).mean()
        return losses


def distilled_blocks(settings: Distillation, depth: int, llm_blocks: int) -> list[int]:
    """Numbers of the blocks that learn from the teacher.

    Raises:
        ConfigError: the teacher has more blocks than the LLM.
    """
    if settings.mode == "none":
        return []
    if depth > llm_blocks:
        raise ConfigError(
            f"The teacher has {depth} blocks, more than the LLM's {llm_blocks}; they are aligned "
            "one to one."
        )
    return [depth - 1] if settings.mode == "last-block" else list(range(depth))


@contextmanager
def captured(
    blocks: list[nn.Module], wanted: list[int], which: Literal["input", "output"]
) -> Iterator[dict[int, torch.Tensor]]:
    """Hidden states of some blocks during a forward pass, and of no others.

    Args:
        blocks: the blocks in order.
        wanted: numbers of those to look at.
        which: states before or after the block.

    Yields:
        Filled by the pass: number of the block to its hidden states (B, T, D).
    """
    states: dict[int, torch.Tensor] = {}

    def before(index: int, _: nn.Module, args: Any, kwargs: Any) -> None:
        states[index] = args[0] if args else kwargs["hidden_states"]

    def after(index: int, _: nn.Module, __: Any, output: Any) -> None:
        states[index] = output[0] if isinstance(output, tuple) else output

    handles = [
        blocks[i].register_forward_pre_hook(partial(before, i), with_kwargs=True)
        if which == "input"
        else blocks[i].register_forward_hook(partial(after, i))
        for i in wanted
    ]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()
