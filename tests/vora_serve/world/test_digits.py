"""Digits: splits that share nothing, images that show the sample they are made from."""

from __future__ import annotations

import numpy as np
import pytest

from vora_serve.world.digits import _FILE, digit_indices, random_digit


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images (1797, 8, 8) and targets (1797,), as the file has them."""
    with np.load(_FILE) as data:
        return data["images"], data["targets"]


def test_the_data_are_scikit_learns(digits: tuple[np.ndarray, np.ndarray]) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    theirs = datasets.load_digits()
    np.testing.assert_array_equal(digits[0], theirs.images)
    np.testing.assert_array_equal(digits[1], theirs.target)


def test_splits_share_nothing_and_leave_nothing_out() -> None:
    parts = [set(digit_indices(split)) for split in ("train", "validation", "test")]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 1797
    assert len(parts[2]) > 300


def test_no_test_image_equals_a_training_image(digits: tuple[np.ndarray, np.ndarray]) -> None:
    images = digits[0]
    train = {images[row].tobytes() for row in digit_indices("train")}
    assert not any(images[row].tobytes() in train for row in digit_indices("test"))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_samples_come_from_their_split(split: str, digits: tuple[np.ndarray, np.ndarray]) -> None:
    images, targets = digits
    rows = {images[row].tobytes(): targets[row] for row in digit_indices(split)}  # type: ignore[arg-type]
    seen = set()
    for index in range(60):
        drawn = random_digit(0, split, index)  # type: ignore[arg-type]
        key = np.round(drawn.sample * 16).astype(np.uint8).tobytes()
        assert rows[key] == drawn.digit
        seen.add(drawn.digit)
    assert seen == set(range(10))


def test_the_same_seed_draws_the_same_image() -> None:
    first, again = random_digit(5, "train", 9), random_digit(5, "train", 9)
    assert first.digit == again.digit
    assert first.image.tobytes() == again.image.tobytes()


@pytest.mark.parametrize("index", range(10))
def test_ink_stands_out_of_the_background(index: int) -> None:
    drawn = random_digit(1, "test", index)
    grey = np.asarray(drawn.image.convert("L"), float)
    ink = np.asarray(drawn.ink)
    assert ink.shape == grey.shape
    assert abs(grey[ink > 200].mean() - grey[ink == 0].mean()) > 60
