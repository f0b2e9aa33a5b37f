"""The teacher's labels say what the pixels show, and its training lowers its losses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model_plugin.images import ImageSettings
from vora_serve.demo.recipe import TeacherRecipe
from vora_serve.demo.teacher import (
    LabelledImages,
    digit_labels,
    position_table,
    scene_labels,
    train_teacher,
)
from vora_serve.training import Optimisation
from vora_serve.world.digits import random_digit
from vora_serve.world.scenes import COLOURS, SHAPES, Scene, Thing, random_scene

GRID = 8
SETTINGS = ImageSettings(resolution="fixed", patch_size=8, image_size=64, resize_edge=64)


def square(x: float, y: float, width: int = 80, height: int = 80) -> Scene:
    thing = Thing("square", "blue", x, y, 10, 0.0, (36, 84, 214))
    return Scene(width, height, (thing,), "plain", ((200, 200, 200), (200, 200, 200)), 0)


def test_labels_of_a_square() -> None:
    # A square of 18 pixels around (40, 40), patches of 10 pixels: 31..49 covers patches 3 and 4.
    labels = scene_labels(square(40, 40), GRID)
    expected = np.zeros((GRID, GRID), bool)
    expected[3:5, 3:5] = True
    shape, colour = labels.shape.reshape(GRID, GRID), labels.colour.reshape(GRID, GRID)
    np.testing.assert_array_equal(shape == 1 + SHAPES.index("square"), expected)
    np.testing.assert_array_equal(colour == 1 + list(COLOURS).index("blue"), expected)
    assert (shape[~expected] == 0).all()
    offset = labels.offset.reshape(GRID, GRID, 2)
    np.testing.assert_allclose(offset[3, 3], (0.5, 0.5))
    np.testing.assert_allclose(offset[3, 4], (-0.5, 0.5))
    assert labels.count == 1
    # Cut out with 14 pixels to each side, the square fills the middle 64 % of each axis.
    canon = labels.canon.reshape(GRID, GRID, 8, 8)[3, 3]
    assert (canon[2:6, 2:6] == 255).all()
    assert (canon[[0, -1]] == 0).all()
    cover = labels.cover.reshape(GRID, GRID, 4, 4)
    assert cover[3, 3, -1, -1] == 255
    assert cover[3, 3, 0, 0] < 255
    assert (cover[0] == 0).all()


def test_padding_moves_labels() -> None:
    # 80 x 40 pixels become a square by 20 more rows above and below.
    labels = scene_labels(square(15, 10, 80, 40), GRID)
    rows, columns = np.nonzero(labels.shape.reshape(GRID, GRID))
    assert sorted(set(rows)) == [2, 3]
    assert sorted(set(columns)) == [0, 1, 2]


@pytest.mark.parametrize("index", range(20))
def test_patches_of_a_colour_show_it(index: int) -> None:
    scene = random_scene(3, "train", index)
    sample = LabelledImages(3, "train", 4 * index + 8, SETTINGS)
    labels = scene_labels(scene, GRID)
    found = {int(colour) for colour in labels.colour if colour > 0}
    assert found <= {1 + list(COLOURS).index(thing.colour) for thing in scene.things}
    assert labels.count == len(scene.things)
    assert len(sample[index]["shape"]) == GRID * GRID


def test_ink_carries_the_digit() -> None:
    drawn = random_digit(0, "train", 0)
    labels = digit_labels(drawn, GRID)
    inked = labels.shape > 0
    assert 3 < inked.sum() < 50
    assert set(labels.shape[inked]) == {1 + len(SHAPES) + drawn.digit}
    assert (labels.colour[inked] == -100).all()
    np.testing.assert_allclose(labels.canon[inked][0] / 255, drawn.sample.ravel(), atol=0.01)


def test_positions_are_distinct_and_near_ones_alike() -> None:
    table = position_table(GRID, 64)
    likeness = table @ table.T
    assert (likeness.argmax(-1) == torch.arange(GRID * GRID)).all()
    middle = likeness[3 * GRID + 3].reshape(GRID, GRID)
    assert middle[3, 4] > middle[3, 5] > middle[3, 6]
    assert middle[4, 3] > middle[5, 3]


def test_training_lowers_the_losses_and_repeats(tmp_path: Path) -> None:
    settings = {
        "steps": 20, "batch_size": 16, "lr": 2e-3, "log_every": 5, "optimizer": "muon", "seed": 4,
    }  # fmt: skip
    recipe = TeacherRecipe(
        hidden_size=32,
        layers=2,
        heads=2,
        mlp=64,
        images=64,
        optimisation=Optimisation.model_validate(settings),
    )
    first, accuracies = train_teacher(recipe, SETTINGS, tmp_path / "a")
    again, _ = train_teacher(recipe, SETTINGS, tmp_path / "b")
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert 0 <= accuracies["colour_accuracy"] <= 1
