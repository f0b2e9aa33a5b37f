"""Every part of the project gives an image the same size and the same number of tokens."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open

from loadtest.cost.model import Decoder, ModelCost
from model_plugin import VoRAImageProcessor
from vora_core.checkpoint import CheckpointHeader
from vora_core.errors import ConfigError, ImageError
from vora_core.geometry import ImageSettings

DECODER = Decoder(64, 2, 2, 1, 32, 128, 300, False)


@st.composite
def image_settings(draw: st.DrawFn) -> ImageSettings:
    patch, merge = draw(st.sampled_from([8, 14, 16])), draw(st.sampled_from([1, 2]))
    unit = patch * merge
    if draw(st.booleans()):
        side = draw(st.integers(unit, 8 * unit))
        return ImageSettings(patch_size=patch, merge_size=merge, image_size=side, resize_edge=side)
    most = draw(st.integers(unit**2, 40 * unit**2))
    least = draw(st.integers(1, most))
    return ImageSettings(
        resolution="native", patch_size=patch, merge_size=merge, min_pixels=least, max_pixels=most
    )


def cost_model(found: ImageSettings) -> ModelCost:
    """The load tests' model of a checkpoint with these settings."""
    fixed = found.resolution == "fixed"
    return ModelCost(
        family="vora", decoder=DECODER, tower=None, embedder=3 * found.patch_size**2 * 8,
        side=found.image_size if fixed else None, patch=found.patch_size, merge=found.merge_size,
        whole_spans=True, params=0, weight_bytes=0, random=True,
        min_pixels=found.min_pixels, max_pixels=found.max_pixels,
    )  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(found=image_settings(), width=st.integers(2, 900), height=st.integers(2, 900))
def test_callers_agree(
    tmp_path_factory: pytest.TempPathFactory, found: ImageSettings, width: int, height: int
) -> None:
    try:
        tokens = found.num_tokens(width, height)
    except ImageError:
        assume(False)
    assert 1 <= tokens <= found.max_tokens
    assert cost_model(found).image_tokens((width, height)) == tokens
    assert ModelCost.from_json(cost_model(found).to_json()).image_tokens((width, height)) == tokens
    folder = tmp_path_factory.getbasetemp()
    config = {"patch_size": found.patch_size, "spatial_merge_size": found.merge_size}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "vora"}))
    (folder / "preprocessor_config.json").write_text(json.dumps(found.to_dict()))
    assert CheckpointHeader.open(folder).image_settings == found
    image = Image.fromarray(np.zeros((height, width, 3), np.uint8))
    grid = VoRAImageProcessor(found)([image])["image_grid_hw"][0]
    assert tuple(int(side) for side in grid) == found.grid(width, height)


def test_an_elongated_image_stays_within_its_bound() -> None:
    """2800 x 14 px once counted as 100 tokens here and as 141 in the load tests."""
    found = ImageSettings(resolution="native", min_pixels=196, max_pixels=19600)
    assert found.num_tokens(2800, 14) == 100
    assert cost_model(found).image_tokens((2800, 14)) == 100


@pytest.mark.parametrize("value", [17, -1, True, "bicubic"])
def test_filters_that_do_not_exist(value: object) -> None:
    with pytest.raises(ConfigError, match="resample must be a number from 0 to 5"):
        ImageSettings.from_dict({"resample": value}, patch_size=14)


def test_headers_of_the_demo_checkpoint() -> None:
    root = Path(__file__).parents[2]
    header = CheckpointHeader.open(root / "vora_serve" / "demo" / "checkpoint")
    header.require_vora()
    assert header.image_settings.num_tokens(64, 64) == 64
    with safe_open(header.folder / "model.safetensors", framework="np") as file:
        counts = {name: prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert {name: entry.count for name, entry in header.tensors.items()} == counts
    assert header.parameters == sum(counts.values())
    assert header.weight_bytes == (header.folder / "model.safetensors").stat().st_size
    assert header.kv_bytes_per_token() == 6 * 2 * 4 * 32 * 2
