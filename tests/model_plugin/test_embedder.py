"""The patch embedder against the oracle's, for every shape of image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import model_plugin  # noqa: F401 - registers VoRA with transformers
from model_plugin.embedder import VoRAVisionEmbedding
from model_plugin.images import patchify
from tests.model_plugin.conftest import Make
from tests.oracle import Oracle

# Patch grids (h, w) around the learned 8 x 8: fewer patches, as many in another shape, more.
GRIDS = [(2, 2), (2, 6), (6, 4), (8, 8), (4, 16), (32, 2), (10, 12), (6, 14), (2, 40)]


def load(path: Path, **changes: Any) -> tuple[VoRAVisionEmbedding, Oracle]:
    model = AutoModelForCausalLM.from_pretrained(path)
    embedding = model.vision_embedding
    embedding.requires_grad_(False)
    for name, value in changes.items():
        setattr(embedding, name, value)
    return embedding, Oracle(path, **changes)


def pixels(h: int, w: int, patch: int = 14) -> np.ndarray:
    rng = np.random.default_rng([h, w])
    return rng.normal(size=(3, h * patch, w * patch)).astype(np.float32)


@pytest.mark.parametrize("mode", ["released", "interpolate"])
@pytest.mark.parametrize("merge", [1, 2])
def test_equals_the_oracle_at_every_shape(make_checkpoint: Make, mode: str, merge: int) -> None:
    embedding, oracle = load(
        make_checkpoint(spatial_merge_size=merge, resolution="native"), position_mode=mode
    )
    pieces = [pixels(h, w) for h, w in GRIDS]
    wanted = torch.cat([oracle.embed_image(piece) for piece in pieces])
    together = embedding(
        torch.from_numpy(np.concatenate([patchify(piece, 14) for piece in pieces])),
        torch.tensor(GRIDS),
    )
    assert together.shape == wanted.shape == (sum(h * w for h, w in GRIDS) // merge**2, 64)
    assert (together - wanted).abs().max() < 1e-5
    for (h, w), piece in zip(GRIDS, pieces, strict=True):
        alone = embedding(torch.from_numpy(patchify(piece, 14)), torch.tensor([[h, w]]))
        assert (alone - oracle.embed_image(piece)).abs().max() < 1e-5


@pytest.mark.parametrize(("patch_size", "image_size"), [(8, 64), (16, 224), (14, 28)])
def test_other_patch_and_image_sizes(
    make_checkpoint: Make, patch_size: int, image_size: int
) -> None:
    embedding, oracle = load(make_checkpoint(patch_size=patch_size, image_size=image_size))
    piece = pixels(3, 5, patch_size)
    got = embedding(torch.from_numpy(patchify(piece, patch_size)), torch.tensor([[3, 5]]))
    assert (got - oracle.embed_image(piece)).abs().max() < 1e-5


def test_position_modes_agree_on_the_learned_grid_only_and_above(make_checkpoint: Make) -> None:
    path = make_checkpoint(resolution="native")
    released, _ = load(path, position_mode="released")
    interpolate, _ = load(path, position_mode="interpolate")
    for h, w in GRIDS:
        same = torch.allclose(released.positions(h, w), interpolate.positions(h, w), atol=1e-6)
        assert same == ((h, w) == (8, 8) or h * w > 64), (h, w)


def test_half_precision_stays_close(make_checkpoint: Make) -> None:
    embedding, oracle = load(make_checkpoint(resolution="native"))
    piece = pixels(6, 14)
    patches, grid = torch.from_numpy(patchify(piece, 14)), torch.tensor([[6, 14]])
    got = embedding.to(torch.bfloat16)(patches, grid)
    assert got.dtype == torch.bfloat16
    wanted = oracle.embed_image(piece)
    assert (got.float() - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_wrong_grids_are_refused(make_checkpoint: Make) -> None:
    embedding, _ = load(make_checkpoint(spatial_merge_size=2))
    patches = torch.zeros(6, 3 * 14 * 14)
    with pytest.raises(ValueError, match="6 patches given, 8 in image_grid_hw"):
        embedding(patches, torch.tensor([[2, 4]]))
    with pytest.raises(ValueError, match="3x2 patches does not divide"):
        embedding(patches, torch.tensor([[3, 2]]))


def test_gradients_reach_every_parameter(make_checkpoint: Make) -> None:
    embedding, _ = load(make_checkpoint(spatial_merge_size=2))
    embedding.requires_grad_(True)
    patches = torch.from_numpy(patchify(pixels(8, 8), 14))
    embedding(patches, torch.tensor([[8, 8]])).square().sum().backward()
    for name, parameter in embedding.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
