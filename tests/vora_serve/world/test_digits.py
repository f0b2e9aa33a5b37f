"""Digits: splits that share nothing, pictures that show the sample they are made from."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from vora_serve.world.digits import digit_indices, random_digit


def test_splits_share_nothing_and_leave_nothing_out() -> None:
    parts = [set(digit_indices(split)) for split in ("train", "validation", "test")]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 1797
    assert len(parts[2]) > 300


def test_no_test_image_equals_a_training_image() -> None:
    images = load_digits().images
    train = {images[row].tobytes() for row in digit_indices("train")}
    assert not any(images[row].tobytes() in train for row in digit_indices("test"))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_samples_come_from_their_split(split: str) -> None:
    data = load_digits()
    rows = {data.images[row].tobytes(): data.target[row] for row in digit_indices(split)}  # type: ignore[arg-type]
    seen = set()
    for index in range(60):
        drawn = random_digit(0, split, index)  # type: ignore[arg-type]
        key = np.round(drawn.sample * 16).astype(float).tobytes()
        assert rows[key] == drawn.digit
        seen.add(drawn.digit)
    assert seen == set(range(10))


def test_the_same_seed_draws_the_same_picture() -> None:
    first, again = random_digit(5, "train", 9), random_digit(5, "train", 9)
    assert first.digit == again.digit
    assert first.picture.tobytes() == again.picture.tobytes()


@pytest.mark.parametrize("index", range(10))
def test_ink_stands_out_of_the_background(index: int) -> None:
    drawn = random_digit(1, "test", index)
    grey = np.asarray(drawn.picture.convert("L"), float)
    ink = np.asarray(drawn.ink)
    assert ink.shape == grey.shape
    assert abs(grey[ink > 200].mean() - grey[ink == 0].mean()) > 60
