"""One training step's losses: language modelling, and distillation while pretraining."""

import torch
from torch import nn
from torch.nn import functional

from model_plugin import ConfigError, VoRAForCausalLM
from vora_serve.training.data import Batch
from vora_serve.training.distill import AuxHeads, Teacher, captured, distilled_blocks
from vora_serve.training.recipe import Distillation


class TrainingModel(nn.Module):
    """A VoRA model with what it needs to learn: teacher and auxiliary heads.

    Args:
        model: the model.
        teacher: a vision teacher, or None.
        distillation: what is aligned with it.

    Raises:
        ConfigError: distillation is asked for without a teacher, or teacher and model do not cut
            images into the same patches.
    """

    def __init__(
        self, model: VoRAForCausalLM, teacher: Teacher | None, distillation: Distillation
    ) -> None:
        super().__init__()
        self.model, self.settings = model, distillation
        self.which = "output" if distillation.alignment == "paper" else "input"
        self.blocks: list[int] = []
        self.aux_vision: AuxHeads | None = None
        self.teacher: list[Teacher] = []  # in a list: not to be trained, saved or sharded
        if distillation.mode == "none":
            return
        if teacher is None:
            raise ConfigError(f"Distillation is {distillation.mode}, but there is no teacher.")
        if teacher.patch_size != model.config.patch_size:
            raise ConfigError(
                f"The teacher's patches are {teacher.patch_size} pixels a side, the model's "
                f"{model.config.patch_size}; they must be equal."
            )
        if model.config.spatial_merge_size != 1:
            raise ConfigError("Distillation aligns patch by patch; spatial_merge_size must be 1.")
        self.blocks = distilled_blocks(distillation, teacher.depth, model.config.num_hidden_layers)
        self.aux_vision = AuxHeads(self.blocks, model.config.hidden_size, teacher.hidden_size)
        self.teacher = [teacher]

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Losses of a batch.

        Returns:
            ``lm``: summed cross-entropy of all targets; ``targets``: their number; with a teacher
            and images, ``aux_i``: mean distillation loss of block i over the batch's image tokens,
            and ``image_tokens``: their number.
        """
        model = self.model
        has_images = len(batch.image_grid_hw) > 0
        embeds = model.embed(
            batch.input_ids,
            batch.pixel_values if has_images else None,
            batch.image_grid_hw if has_images else None,
        )
        wanted = self.blocks if has_images else []
        visible = batch.visible
        if not model.config.is_mm_prefix_lm:
            visible = torch.ones_like(visible).tril()
        with captured(list(model.llm.model.layers), wanted, self.which) as states:  # type: ignore[arg-type]
            hidden = model.llm.model(inputs_embeds=embeds, attention_mask=visible).last_hidden_state
        losses = lm_loss(hidden, batch.labels, model.llm.lm_head)
        if wanted and self.aux_vision is not None:
            seen = {i: states[i][batch.image_mask] for i in wanted}
            targets = self._targets(batch)
            for block, loss in self.aux_vision(seen, targets).items():
                losses[f"aux_{block}"] = loss
            losses["image_tokens"] = batch.image_mask.sum()
        return losses

    def _targets(self, batch: Batch) -> list[torch.Tensor]:
        """The teacher's hidden states of the batch's image tokens, (tokens, D) for each block."""
        teacher = self.teacher[0]
        grid = teacher.image_size // teacher.patch_size
        if any((h, w) != (grid, grid) for h, w in batch.image_grid_hw.tolist()):
            raise ConfigError(
                f"The teacher sees grids of {grid}x{grid} patches; pretrain at that fixed size."
            )
        pixels = unpatchify(batch.pixel_values, grid, teacher.patch_size)
        states = teacher(pixels, self.blocks, self.which)
        return [state.flatten(0, 1) for state in states]


def lm_loss(
    hidden: torch.Tensor, labels: torch.Tensor, lm_head: nn.Module
) -> dict[str, torch.Tensor]:
    """Next-token cross-entropy; logits are computed at targets only.

    Args:
        hidden: (B, T, hidden_size).
        labels: int64 (B, T), -100 where there is no target.
        lm_head: hidden states to logits.

    Returns:
        ``lm``: sum over targets; ``targets``: their number.
    """
    following = labels[:, 1:]
    chosen = following >= 0
    logits = lm_head(hidden[:, :-1][chosen]).float()
    total = functional.cross_entropy(logits, following[chosen], reduction="sum")
    return {"lm": total, "targets": chosen.sum()}


def unpatchify(patches: torch.Tensor, grid: int, patch_size: int) -> torch.Tensor:
    """Flattened patches of square images back to pixels.

    Args:
        patches: (B * G * G, 3 * P * P).
        grid: G.
        patch_size: P.

    Returns:
        (B, 3, G * P, G * P).
    """
    blocks = patches.view(-1, grid, grid, 3, patch_size, patch_size)
    side = grid * patch_size
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, side, side)
