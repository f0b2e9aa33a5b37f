"""The wide world: what it shows is what it says, and the test split keeps things for itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from benchmarks.world.__main__ import draw_table, rates
from tests import command_line
from tests.vora_serve.world.emoji import fake_package
from vora_core.errors import ConfigError
from vora_serve.world.questions import NUMBERS
from vora_serve.world.scenes import COLOURS, Split
from vora_serve.world.suite import is_right
from vora_serve.world.wide import FAMILIES, Assets, WideWorld, find_assets
from vora_serve.world.wide import draw as drawing
from vora_serve.world.wide.assets import PACKAGE, Emoji, is_held_out
from vora_serve.world.wide.suite import build_wide_suite
from vora_serve.world.wide.words import WORDS

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Assets:
    return find_assets(fake_package(tmp_path_factory.mktemp("emoji")))


def test_emoji_and_flags_have_names(assets: Assets) -> None:
    assert len(assets.emoji) == 64
    assert len(assets.flags) == 6
    names = {e.name for e in (*assets.emoji, *assets.flags)}
    assert "thing aa" in names
    assert "cn" in names  # a flag's country alone
    assert not names & {"keycap 10", "not drawn"}


def test_the_test_split_keeps_fonts_and_emoji_for_itself(assets: Assets) -> None:
    for of_split in (assets.fonts_of, assets.countable):
        train, test = set(of_split("train")), set(of_split("test"))
        assert train
        assert test
        assert not train & test
        assert set(of_split("validation")) == train
    assert not set(drawing.LAYOUTS["train"]) & set(drawing.LAYOUTS["test"])


@pytest.mark.parametrize("split", SPLITS)
def test_a_sample_is_a_function_of_its_number(assets: Assets, split: Split) -> None:
    one, again = WideWorld(assets, 3, split), WideWorld(assets, 3, split)
    for index in range(30):
        a, b = one[index], again[index]
        assert (a.question, a.answer) == (b.question, b.answer)
        assert [i.tobytes() for i in a.images] == [i.tobytes() for i in b.images]
    other = WideWorld(assets, 4, split)
    assert any(one[i].images[0].tobytes() != other[i].images[0].tobytes() for i in range(5))
    low, high = drawing.SIDES
    for index in range(30):
        for image in one[index].images:
            assert low <= min(image.size) <= max(image.size) <= high


def test_weights_decide_what_is_asked(assets: Assets) -> None:
    world = WideWorld(assets, 1, weights=dict.fromkeys(FAMILIES, 0.0) | {"clock": 1.0, "word": 3.0})
    counts = Counter(world[i].family for i in range(120))
    assert set(counts) == {"clock", "word"}
    assert counts["word"] > counts["clock"]


def test_a_right_name_is_among_those_offered(assets: Assets) -> None:
    world = WideWorld(assets, 1)
    for family in ("emoji", "flag"):
        for index in range(20):
            sample = world.of_family(family, index)  # type: ignore[arg-type]
            assert sample.answer in sample.question
            assert sample.question.count(",") == 2


def discs(image: Image.Image) -> int:
    """How many separate red discs an image shows, by flood fill."""
    pixels = np.asarray(image, int)
    red = (pixels[..., 0] > 200) & (pixels[..., 2] < 60) & (pixels[..., 1] < 215)
    mask = Image.fromarray((255 * red).astype(np.uint8)).copy()  # one that can be changed
    found = 0
    for y, x in np.argwhere(np.asarray(mask) == 255).tolist():
        if mask.getpixel((x, y)) == 255:
            before = np.asarray(mask) == 255
            ImageDraw.floodfill(mask, (x, y), 128)
            found += (before & (np.asarray(mask) == 128)).sum() > 20
    return found


@pytest.mark.parametrize("split", ["train", "test"])
def test_as_many_are_drawn_as_are_counted(assets: Assets, split: Split) -> None:
    world = WideWorld(assets, 2, split)
    for index in range(25):
        sample = world.of_family("count", index)
        assert NUMBERS[discs(sample.images[0])] == sample.answer, index


def test_the_tallest_and_shortest_bars_are_those(assets: Assets) -> None:
    world = WideWorld(assets, 2)
    for index in range(25):
        sample = world.of_family("chart", index)
        pixels = np.asarray(sample.images[0], int)
        heights = {}
        for name, colour in COLOURS.items():
            rows = (np.abs(pixels - colour).max(-1) == 0).any(1).sum()
            if rows > 5:
                heights[name] = int(rows)
        choose = max if "tallest" in sample.question else min
        assert choose(heights, key=lambda name: heights[name]) == sample.answer


def hand(image: Image.Image, radius: float) -> set[int]:
    """Angles in degrees at which a circle around the middle meets black."""
    x, y = image.width / 2, image.height / 2
    found = set()
    for angle in range(360):
        turn = np.radians(angle)
        at = (round(x + radius * np.sin(turn)), round(y - radius * np.cos(turn)))
        if sum(image.convert("RGB").getpixel(at)) < 200:  # type: ignore[arg-type]
            found.add(angle)
    return found


def test_hands_of_a_clock_point_where_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "place", lambda rng, split: (0.5, 0.5))
    for hour, minute in ((3, 0), (9, 30), (12, 45)):
        rng = np.random.default_rng(1)
        assert np.random.default_rng(1).random() < 0.7  # a light face
        image = Image.new("RGB", (220, 220), (128, 128, 128))
        drawing.draw_clock(rng, image, hour, minute, "train")
        radius = 0.24 * 220
        long = hand(image, 0.65 * radius)
        assert long
        assert all(min(abs(a - 6 * minute), 360 - abs(a - 6 * minute)) < 8 for a in long)
        short = hand(image, 0.4 * radius) - long
        wanted = (30 * hour + minute / 2) % 360
        assert any(min(abs(a - wanted), 360 - abs(a - wanted)) < 8 for a in short | long)


def test_words_stay_inside_their_image(assets: Assets) -> None:
    blank = Image.new("RGB", (120, 112), (200, 200, 200))
    drawing.draw_word(blank, "yesterday", assets.fonts[0], (0.99, 0.99), (20, 20, 20), 0.9)
    dark = np.argwhere(np.asarray(blank.convert("L")) < 100)
    assert dark.min() >= 1
    assert dark[:, 1].max() < 119
    assert dark[:, 0].max() < 111


def test_two_images_are_alike_when_the_answer_is_yes(assets: Assets) -> None:
    world = WideWorld(assets, 6)
    answers = Counter()
    for index in range(40):
        sample = world.of_family("pair", index)
        assert len(sample.images) == 2
        assert [p["type"] for p in sample.messages[0]["content"]] == ["image", "image", "text"]
        answers[sample.answer] += 1
    assert min(answers["yes"], answers["no"]) > 10


def test_the_suite_is_balanced_and_held_out(assets: Assets) -> None:
    items = build_wide_suite(assets, 12)
    assert [item.group for item in items] == [f for f in FAMILIES for _ in range(12)]
    for family in ("chart", "count", "pair"):
        counts = Counter(item.answer for item in items if item.group == family)
        assert max(counts.values()) <= {"chart": 2, "count": 2, "pair": 6}[family]
    assert all(blank.images[0].getcolors(2) for blank in (item.blank() for item in items))
    assert items[0].images[0].tobytes() != build_wide_suite(assets, 1, 5)[0].images[0].tobytes()


@pytest.mark.parametrize(
    ("said", "answer", "right"),
    [
        ("3:05", "3:05", True),
        ("It is 3:05", "3:05", False),
        ("3.05!", "3:05", True),
        ("12:30", "12:35", False),
        ("Hot Dog.", "hot dog", True),
        ("a hot dog", "hot dog", True),
        ("dog", "hot dog", False),
        ("The Gambia", "the gambia", True),
        ("4", "four", True),
        ("a", "an", False),
    ],
)
def test_answers_of_several_words_and_times(said: str, answer: str, right: bool) -> None:
    assert is_right(said, answer) is right


def test_what_is_missing_is_named_with_the_command_that_brings_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"npm install --prefix .* --ignore-scripts {PACKAGE}"):
        find_assets(tmp_path / "node_modules" / PACKAGE)
    package = fake_package(tmp_path / "emoji")
    with pytest.raises(ConfigError, match=r"too few fonts.*apt-get install"):
        find_assets(package, [tmp_path / "nothing"])
    with pytest.raises(ConfigError, match="too few images"):
        find_assets(fake_package(tmp_path / "few", emoji=3))
    done = command_line.run("evaluate", "--suite", "world", "--data", str(tmp_path / "x"))
    assert done.returncode == 2
    assert "npm install" in done.stderr


def test_a_dry_run_counts_the_questions(assets: Assets) -> None:
    folder = assets.emoji[0].file.parents[3]
    done = command_line.run(
        "evaluate", "--suite", "world", "--data", str(folder), "--limit", "3", "--dry-run"
    )
    assert done.returncode == 0, done.stderr
    assert f": {3 * len(FAMILIES)} questions\n" in done.stdout


def test_hashes_hold_out_about_an_eighth() -> None:
    share = np.mean([is_held_out(Emoji(f"name {i}", Path()).name) for i in range(2000)])
    assert 0.09 < share < 0.16


def test_words_are_written_once_in_the_list() -> None:
    assert len(WORDS) == len(set(WORDS)) == 82


def test_rates_of_rendering_are_told_by_family(assets: Assets) -> None:
    found = rates(WideWorld(assets, 1), 2)
    assert list(found) == [*FAMILIES, "all in equal parts"]
    assert min(found.values()) <= found["all in equal parts"] <= max(found.values())
    assert "| count | " in draw_table(found)
