"""The patch embedder's start: what it takes over from the teacher."""

import math

import torch
from torch.nn import functional

from model_plugin import CheckpointError, VoRAForCausalLM
from vora_serve.training.distill import Teacher


def init_embedder(model: VoRAForCausalLM, teacher: Teacher) -> None:
    """Copy the teacher's patch projection, norm and positions where they fit.

    A class token's position is left out, and a position grid of another side is resized; a teacher
    of another width or patch size gives what it has. AIMv2 gives everything.

    Raises:
        CheckpointError: a teacher of the model's width and patch size has no patch projection.
    """
    own = dict(model.vision_embedding.named_parameters())
    names = {
        "embeddings.patch_embed.weight": "patchifier.proj.weight",
        "embeddings.patch_embed.bias": "patchifier.proj.bias",
        "embeddings.rms_norm.weight": "patchifier.norm.weight",
        "embeddings.position_embedding.weight": "pos_embed",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embedding.weight": "patchifier.proj.weight",
        "embeddings.patch_embedding.bias": "patchifier.proj.bias",
        "embeddings.patch_embeddings.projection.weight": "patchifier.proj.weight",
        "embeddings.patch_embeddings.projection.bias": "patchifier.proj.bias",
    }
    taken = set()
    with torch.no_grad():
        for name, parameter in teacher.vision.named_parameters():
            place = next((t for suffix, t in names.items() if name.endswith(suffix)), None)
            if place is None:
                continue
            target, values = own[place], parameter.detach()
            if place == "pos_embed":
                values = _fit_positions(values, model.vision_embedding.grid_size)
            if target.numel() == values.numel():
                target.copy_(values.view_as(target))
                taken.add(place)
    projection = own["patchifier.proj.weight"]
    fits = (teacher.hidden_size, teacher.patch_size) == (
        projection.shape[0],
        model.config.patch_size,
    )
    if fits and "patchifier.proj.weight" not in taken:
        raise CheckpointError(
            f"The patch projection of {type(teacher.vision).__name__} cannot be found, which the "
            "embedder starts from."
        )


def _fit_positions(positions: torch.Tensor, grid: int) -> torch.Tensor:
    """A teacher's learned positions, (1, N, D) or (N, D), for a grid of G x G: (G * G, D)."""
    table = positions.flatten(0, -2)
    side = math.isqrt(len(table))
    table = table[-(side**2) :]  # a class token comes first
    if side == grid:
        return table
    square = table.T.reshape(1, -1, side, side).float()
    resized = functional.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    return resized.flatten(2)[0].T.to(table.dtype)
