"""How alike a model's blocks and a vision teacher's are, over the patches of an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from model_plugin.checkpoint import Checkpoint
from model_plugin.errors import ConfigError
from model_plugin.images import CLIP_MEAN, CLIP_STD, ImageSettings
from vora_serve.training.distill import AuxHeads, Teacher
from vora_serve.training.features import PixelBridge, fit_grid


class TeacherView:
    """A teacher beside a model.

    Args:
        model: the model's checkpoint; one of pretraining has the auxiliary heads.
        teacher: folder or hub id of a vision transformer of transformers'.
        settings: how the model's pixels were made.
        device: where it runs.

    Raises:
        ConfigError: the teacher cannot be read.
    """

    def __init__(
        self, model: str | Path, teacher: str | Path, settings: ImageSettings, device: str
    ) -> None:
        try:
            whole = AutoModel.from_pretrained(teacher, dtype=torch.float32)
            size = getattr(AutoConfig.from_pretrained(teacher), "vision_config", None)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{teacher} cannot be read as a vision transformer.") from error
        vision = whole.vision_model if size is not None else whole
        mean, std = _normalisation(teacher)
        bridge = PixelBridge(
            settings.image_mean, settings.image_std, mean, std, int(vision.config.image_size)
        )
        self.settings = settings
        self.device = device
        self.teacher = Teacher(vision, bridge).to(device)
        self.heads = _heads(Path(model), self.teacher.hidden_size)
        if self.heads is not None:
            self.heads = self.heads.to(device)

    @property
    def depth(self) -> int:
        """Number of its blocks."""
        return self.teacher.depth

    @torch.no_grad()
    def compare(
        self, states: dict[int, torch.Tensor], inputs: dict[str, torch.Tensor], merge: int
    ) -> dict[str, Any]:
        """Fields of an explanation.

        Args:
            states: block to what left it at image tokens, (N, hidden_size).
            inputs: ``pixel_values`` and ``image_grid_hw`` as the model got them.
            merge: m, side in patches of what becomes a token.
        """
        blocks = sorted(states)
        targets: list[list[torch.Tensor]] = [[] for _ in blocks]
        taken = 0
        for h, w in inputs["image_grid_hw"].tolist():
            patches = inputs["pixel_values"][taken : taken + h * w]
            taken += h * w
            pixels = unpatchify(patches, h, w, self.settings.patch_size)
            for index, state in enumerate(self.teacher(pixels[None], blocks, "output")):
                targets[index].append(fit_grid(state, (h, w), merge)[0])
        whole = [torch.cat(parts) for parts in targets]
        if self.heads is not None and set(blocks) <= set(self.heads.blocks):
            likeness = torch.stack(
                [
                    torch.cosine_similarity(
                        self.heads.get_submodule(f"aux_layer_{block}")(states[block].float()),
                        target.float(),
                        dim=-1,
                    )
                    for block, target in zip(blocks, whole, strict=True)
                ]
            )
            return {
                "similarity": [round(float(row.mean()), 4) for row in likeness],
                "measure": "cosine",
                "likeness": likeness.cpu().numpy(),
            }
        values = [
            linear_cka(states[block].float(), target.float())
            for block, target in zip(blocks, whole, strict=True)
        ]
        return {"similarity": [round(value, 4) for value in values], "measure": "cka"}


def unpatchify(patches: torch.Tensor, h: int, w: int, patch_size: int) -> torch.Tensor:
    """(h * w, 3 * P * P), the grid row-major, to pixels (3, h * P, w * P)."""
    grid = patches.reshape(h, w, 3, patch_size, patch_size).permute(2, 0, 3, 1, 4)
    return grid.reshape(3, h * patch_size, w * patch_size)


def linear_cka(a: torch.Tensor, b: torch.Tensor) -> float:
    """Linear centred kernel alignment of (N, A) and (N, B), 0..1 (Kornblith et al., 2019)."""
    a, b = a - a.mean(0), b - b.mean(0)
    cross = torch.linalg.matrix_norm(a.T @ b) ** 2
    own = torch.linalg.matrix_norm(a.T @ a) * torch.linalg.matrix_norm(b.T @ b)
    return float(cross / own) if float(own) > 0 else 0.0


def _normalisation(teacher: str | Path) -> tuple[Any, Any]:
    try:
        processor: Any = AutoImageProcessor.from_pretrained(teacher, use_fast=False)
        return tuple(processor.image_mean), tuple(processor.image_std)
    except (OSError, ValueError, ImportError, AttributeError):
        return CLIP_MEAN, CLIP_STD


def _heads(model: Path, teacher_size: int) -> AuxHeads | None:
    """The auxiliary heads of a pretraining checkpoint; None where it has none that fit."""
    if not model.is_dir():
        return None
    checkpoint = Checkpoint.open(model)
    prefix = "aux_vision."
    tensors = {
        name.removeprefix(prefix): tensor
        for name, tensor in checkpoint.raw_tensors()
        if name.startswith(f"{prefix}aux_layer_")
    }
    if not tensors:
        return None
    blocks = sorted({int(name.split(".")[0].removeprefix("aux_layer_")) for name in tensors})
    weight = tensors[f"aux_layer_{blocks[0]}.1.weight"]
    if weight.shape[0] != teacher_size:
        return None
    heads = AuxHeads(blocks, int(weight.shape[1]), teacher_size)
    heads.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return heads.eval()
