"""Versions are read as what they are."""

import pytest

from vora_core.versions import installed, release, spelled, supported


@pytest.mark.parametrize(
    ("version", "found"),
    [("0.32.0", (0, 32)), ("0.32.0+cpu", (0, 32)), ("2.13.0rc1", (2, 13)), ("3", (3, 0))],
)
def test_release(version: str, found: tuple[int, int]) -> None:
    assert release(version) == found


def test_bounds_exclude_the_upper_one() -> None:
    bounds = ((0, 32), (0, 33))
    assert spelled(bounds) == ">=0.32,<0.33"
    assert [supported(v, bounds) for v in ("0.31.9", "0.32.9", "0.33.0", "1.0")] == [
        False, True, False, False,
    ]  # fmt: skip


def test_installed_takes_the_first_name() -> None:
    found = installed(["surely-not-installed", "pytest", "pydantic"])
    assert found is not None
    assert found[0] == "pytest"
    assert installed("surely-not-installed") is None
