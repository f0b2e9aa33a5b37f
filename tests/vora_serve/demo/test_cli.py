"""The demo's commands, run as a user runs them."""

from __future__ import annotations

from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
from PIL import Image

from tests import command_line
from vora_serve.world.scenes import random_scene, render


def run(*arguments: str) -> CompletedProcess[str]:
    return command_line.run("demo", *arguments)


def test_an_image_is_drawn_and_described(tmp_path: Path) -> None:
    file = tmp_path / "scene.png"
    done = run("image", str(file), "--seed", "5")
    assert done.returncode == 0, done.stderr
    scene = random_scene(5, "test", 0)
    np.testing.assert_array_equal(np.asarray(Image.open(file)), np.asarray(render(scene)))
    assert all(thing.name in done.stdout for thing in scene.things)


def test_the_old_name_still_works_with_a_warning(tmp_path: Path) -> None:
    done = run("picture", str(tmp_path / "scene.png"))
    assert done.returncode == 0
    assert "'picture' is now called 'image'" in done.stderr
    assert (tmp_path / "scene.png").is_file()
    assert "picture" not in run("--help").stdout


def test_a_digit_is_drawn(tmp_path: Path) -> None:
    done = run("image", str(tmp_path / "digit.png"), "--digit")
    assert done.returncode == 0, done.stderr
    assert "The handwritten digit" in done.stdout
    assert (tmp_path / "digit.png").is_file()


def test_no_place_to_write_is_one_sentence(tmp_path: Path) -> None:
    done = run("image", str(tmp_path / "missing" / "scene.png"))
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_recipe_is_one_sentence(tmp_path: Path) -> None:
    done = run("train", "--run", str(tmp_path), "teacher.layer=3")
    assert done.returncode == 2
    assert "teacher.layer" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
