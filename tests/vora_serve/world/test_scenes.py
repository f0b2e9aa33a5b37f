"""Scenes are what they say, the same every time, and never shared between splits."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from vora_serve.world import scenes
from vora_serve.world.scenes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    Scene,
    Thing,
    random_scene,
    render,
    stream,
)


def pixels(scene: Scene) -> np.ndarray:
    return np.asarray(render(scene)).astype(int)


def plain(shape: str, radius: float = 30.0) -> np.ndarray:
    """Mask of one upright shape in the middle of 120 x 120 pixels."""
    thing = Thing(shape, "red", 60, 60, radius, 0.0, (255, 0, 0))
    scene = Scene(120, 120, (thing,), "plain", ((0, 0, 0), (0, 0, 0)), 0)
    return pixels(scene)[..., 0] > 127


def test_the_same_seed_draws_the_same_pixels() -> None:
    for index in range(5):
        first, again = random_scene(3, "train", index), random_scene(3, "train", index)
        assert first == again
        np.testing.assert_array_equal(pixels(first), pixels(again))


@pytest.mark.parametrize("other", [(3, "test", 0), (4, "train", 0), (3, "train", 1)])
def test_another_seed_split_or_index_draws_another_scene(other: tuple[int, str, int]) -> None:
    assert random_scene(3, "train", 0) != random_scene(*other)  # type: ignore[arg-type]


def test_streams_of_splits_differ_at_every_seed() -> None:
    firsts = {
        stream(seed, split, index).integers(2**62)
        for seed in range(20)
        for split in ("train", "validation", "test")
        for index in range(20)
    }
    assert len(firsts) == 20 * 3 * 20


def test_every_kind_of_everything_turns_up() -> None:
    drawn = [random_scene(0, "train", index) for index in range(300)]
    assert {len(scene.things) for scene in drawn} == {1, 2, 3, 4}
    assert {scene.background for scene in drawn} == set(BACKGROUNDS)
    assert {thing.shape for scene in drawn for thing in scene.things} == set(SHAPES)
    assert {thing.colour for scene in drawn for thing in scene.things} == set(COLOURS)
    ratios = [scene.width / scene.height for scene in drawn]
    assert min(ratios) < 0.7
    assert max(ratios) > 1.4
    areas = [scene.width * scene.height for scene in drawn]
    assert max(areas) > 3 * min(areas)


@pytest.mark.parametrize("index", range(40))
def test_the_middle_of_a_shape_has_its_colour(index: int) -> None:
    scene = random_scene(1, "train", index)
    image = pixels(scene)
    for thing in scene.things:
        middle = image[int(thing.y), int(thing.x)]
        # A nearest-colour rule of this test's own, on the nominal colours.
        nearest = min(COLOURS, key=lambda name: float(np.sum((COLOURS[name] - middle) ** 2)))
        assert nearest == thing.colour


@pytest.mark.parametrize("index", range(40))
def test_shapes_lie_inside_and_apart(index: int) -> None:
    scene = random_scene(2, "train", index)
    background = pixels(Scene(**{**vars(scene), "things": ()}))
    masks = []
    for thing in scene.things:
        alone = pixels(Scene(**{**vars(scene), "things": (thing,)}))
        mask = (alone != background).any(-1)
        assert not mask[[0, -1]].any()
        assert not mask[:, [0, -1]].any()
        ys, xs = np.nonzero(mask)
        assert abs((xs.min() + xs.max()) / 2 - thing.x) < 0.35 * thing.radius + 1
        assert abs((ys.min() + ys.max()) / 2 - thing.y) < 0.5 * thing.radius + 1
        masks.append(mask)
    for one, other in combinations(masks, 2):
        assert not (one & other).any()
    names = [thing.name for thing in scene.things]
    assert len(set(names)) == len(names)


def test_shapes_have_their_forms() -> None:
    radius = 30.0
    area = {shape: plain(shape).sum() / radius**2 for shape in SHAPES}
    assert area["circle"] == pytest.approx(math.pi, rel=0.02)
    assert area["square"] == pytest.approx(1.8**2, rel=0.03)
    circle, square, triangle, cross, star = (
        plain(shape) for shape in ("circle", "square", "triangle", "cross", "star")
    )
    corner = (slice(34, 38), slice(34, 38))  # towards the top left, within the square only
    assert square[corner].all()
    assert not circle[corner].any()
    assert not cross[corner].any()
    for symmetric in (circle, square, cross):
        np.testing.assert_array_equal(symmetric[1:, 1:], symmetric[1:, 1:].T)
    widths = triangle.sum(1)[triangle.any(1)]
    assert widths[:5].max() < 8
    assert widths[-8:].max() > 60
    # A star's ring, half-way out to its tips, is left and entered five times.
    turns = np.linspace(0, 2 * math.pi, 720, endpoint=False)
    ring = star[
        np.round(60 + 29 * np.sin(turns)).astype(int), np.round(60 + 29 * np.cos(turns)).astype(int)
    ]
    assert np.count_nonzero(ring != np.roll(ring, 1)) == 10


def test_what_is_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match="background"):
        scenes.draw_background(10, 10, "sky", ((0, 0, 0), (0, 0, 0)), 0)


def test_a_blank_image_is_blank() -> None:
    blank = scenes.blank_like(30, 20)
    assert blank.size == (30, 20)
    assert isinstance(blank, Image.Image)
    assert len(set(blank.get_flattened_data())) == 1
