"""Geometry and pixels, against the released outputs and the oracle's own pipeline."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from model_plugin.decoding import decode
from model_plugin.errors import ConfigError, ImageError
from model_plugin.images import ImageSettings, patchify, preprocess, preprocess_patches
from model_plugin.processor import VoRAImageProcessor
from tests.checkpoints import FIXTURES
from tests.model_plugin.conftest import noise_image, open_image
from tests.oracle import Oracle
from vora_core import bicubic, resampling
from vora_core.pixel_memory import pixels_of
from vora_core.pixels import resized_rgb
from vora_core.upright import TURNS, Upright

RELEASED = json.loads((FIXTURES / "merged" / "preprocessor_config.json").read_text())


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle(FIXTURES / "merged")


def judge(oracle: Oracle, data: dict[str, Any], merge: int = 1) -> Oracle:
    """The oracle with another preprocessor_config.json."""
    other = Oracle.__new__(Oracle)
    other.__dict__.update(oracle.__dict__)
    other.preprocessor, other.merge = data, merge
    other.resolution = data.get("resolution", "fixed")
    return other


def read(data: dict[str, Any], merge: int = 1) -> ImageSettings:
    return ImageSettings.from_dict(data, patch_size=14, merge_size=merge)


@pytest.mark.parametrize(
    ("name", "file", "resolution", "grid"),
    [
        ("one_image", "a.png", "fixed", (8, 8)),
        ("native_large", "native_large.png", "native", (9, 14)),
    ],
)
def test_released_pixels(name: str, file: str, resolution: str, grid: tuple[int, int]) -> None:
    expected = np.load(FIXTURES / "expected" / f"{name}.npz")["pixels"][0]
    chosen = read(RELEASED | {"resolution": resolution})
    image = open_image(file)
    pixels = preprocess(image, chosen)
    assert pixels.dtype == np.float32
    assert pixels.shape == expected.shape == (3, grid[0] * 14, grid[1] * 14)
    assert np.abs(pixels - expected).mean() < 1e-6
    assert chosen.grid(*image.size) == grid
    assert chosen.num_tokens(*image.size) == grid[0] * grid[1]


@pytest.mark.parametrize("size", [(2, 3), (90, 31), (31, 90), (112, 112), (300, 299), (57, 2000)])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"size": {"shortest_edge": 126}},  # resized larger, then cropped at the centre
        {"size": {"height": 224, "width": 224}, "crop_size": 224},
        {"size": 56, "crop_size": {"height": 56, "width": 56}, "resample": 2},
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "rescale_factor": 0.01},
        {"size": 125, "crop_size": 120},  # 8.6 patches: the convolution stops after the 8th
    ],
)
def test_fixed_pixels(oracle: Oracle, size: tuple[int, int], change: dict[str, Any]) -> None:
    data = RELEASED | change
    image = noise_image(*size)
    got, want = preprocess(image, read(data)), judge(oracle, data).pixels(image)
    whole = want.shape[1] // 14 * 14
    want = want[:, :whole, :whole]
    assert got.shape == want.shape
    assert np.abs(got - want).max() < 1e-5


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "1", "CMYK", "F"])
@pytest.mark.parametrize("resolution", ["fixed", "native"])
def test_every_mode_of_image(oracle: Oracle, mode: str, resolution: str) -> None:
    """Opaque; what transparency and wide samples become, tests/vora_serve/gateway say."""
    image = noise_image(75, 50).convert(mode)
    data = RELEASED | {"resolution": resolution}
    assert np.abs(preprocess(image, read(data)) - judge(oracle, data).pixels(image)).max() < 1e-5


@hypothesis_settings(max_examples=60)
@given(
    st.integers(14, 260),
    st.integers(14, 260),
    st.sampled_from([1, 2]),
    st.sampled_from([(3136, 784000), (56 * 56, 120 * 120), (90 * 90, 200 * 200)]),
)
def test_native_pixels(
    oracle: Oracle, width: int, height: int, merge: int, bounds: tuple[int, int]
) -> None:
    assume(min(width, height) >= 14 * merge)
    low, high = bounds
    data = RELEASED | {"resolution": "native", "min_pixels": low, "max_pixels": high}
    image = noise_image(width, height)
    got, want = preprocess(image, read(data, merge)), judge(oracle, data, merge).pixels(image)
    assert got.shape == want.shape
    assert np.abs(got - want).max() < 1e-5


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([1, 2, 3]), st.data())
def test_native_geometry(width: int, height: int, merge: int, data: st.DataObject) -> None:
    """Whatever the image and the bounds: whole units, within bounds, or a refusal."""
    unit = 14 * merge
    high = data.draw(st.integers(unit**2, 800_000))
    low = data.draw(st.integers(0, high))
    chosen = ImageSettings(resolution="native", merge_size=merge, min_pixels=low, max_pixels=high)
    try:
        h, w = chosen.grid(width, height)
    except ImageError:
        refused = min(width, height) < 2 or max(width, height) > 200 * min(width, height)
        assert refused or high < 4 * max(low, unit**2)
        return
    assert h % merge == w % merge == 0
    assert min(h, w) >= merge
    assert h * w * 14 * 14 <= high
    assert chosen.num_tokens(width, height) == h * w // merge**2 <= chosen.max_tokens


def test_half_units_round_to_even() -> None:
    chosen = ImageSettings(resolution="native", min_pixels=0)
    assert chosen.resized(35, 49) == (28, 56)  # 2.5 and 3.5 units


def test_max_tokens_is_reached() -> None:
    assert ImageSettings(image_size=448).max_tokens == 1024 == ImageSettings().num_tokens(4, 700)
    chosen = ImageSettings(resolution="native", max_pixels=(14 * 20) ** 2)
    assert chosen.max_tokens == 400 == chosen.num_tokens(4000, 4000)
    merged = ImageSettings(resolution="native", merge_size=2, max_pixels=(14 * 20) ** 2)
    assert merged.max_tokens == 100 == merged.num_tokens(4000, 4000)


@pytest.mark.parametrize("resolution", ["fixed", "native"])
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 401), (4000, 19)])
def test_tiny_and_elongated_images_are_refused(resolution: Any, size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=f"{size[0]}x{size[1]} pixels"):
        preprocess(Image.new("RGB", size), ImageSettings(resolution=resolution))


@pytest.mark.parametrize("size", [(2, 400), (400, 2), (2, 2), (13, 20)])
@pytest.mark.parametrize("resolution", ["fixed", "native"])
def test_the_smallest_and_longest_that_pass(resolution: Any, size: tuple[int, int]) -> None:
    chosen = ImageSettings(resolution=resolution, image_size=112, resize_edge=112)
    pixels = preprocess(noise_image(*size), chosen)
    assert np.isfinite(pixels).all()
    h, w = chosen.grid(*size)
    assert pixels.shape == (3, 14 * h, 14 * w)


@pytest.mark.parametrize("compiled", [False, True])
@given(st.integers(2, 300), st.integers(2, 300), st.integers(1, 120), st.data())
@hypothesis_settings(deadline=None)  # the first compiles
def test_bands_and_threads_give_the_released_bytes(
    compiled: bool, width: int, height: int, edge: int, data: st.DataObject
) -> None:
    """However the work is cut: rows, then columns, of the whole image and of one real square."""
    assume(max(width, height) <= 200 * min(width, height))
    image = noise_image(width, height)
    threads, filter_ = data.draw(st.integers(1, 5)), data.draw(st.sampled_from([2, 3, 1]))
    size = (edge, data.draw(st.integers(1, 120)))
    side = max(width, height)
    square = Image.new("RGB", (side, side))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resampling, "BAND_PIXELS", data.draw(st.sampled_from([1, 999, 1 << 20])))
        if compiled:
            pytest.importorskip("numba")
            filter_, pixels = Image.Resampling.BICUBIC, np.asarray(image)
            resized = resampling.resize_compiled(pixels, size, threads)
            padded = resampling.resize_compiled(pixels, (edge, edge), threads, side)
        else:
            resized = resampling.resize(Upright(image), size, filter_, threads)
            padded = resampling.resize_padded(Upright(image), edge, filter_, threads)
    for got, source, goal in ((resized, image, size), (padded, square, (edge, edge))):
        rows = source.resize((goal[0], source.height), filter_)
        assert (got == np.asarray(rows.resize(goal, filter_))).all()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("size", [(500, 77), (77, 500), (125, 125)])
@pytest.mark.parametrize("change", [{}, {"resolution": "native"}, {"size": 125, "crop_size": 120}])
def test_patches_at_once(threads: int, size: tuple[int, int], change: dict[str, Any]) -> None:
    """The processor's shorter way gives what pixels cut into patches give, bit for bit."""
    chosen = read(RELEASED | change)
    image = noise_image(*size, mode="P")
    patches, grid = preprocess_patches(image, chosen, threads)
    pixels = preprocess(image, chosen)
    assert grid == (pixels.shape[1] // 14, pixels.shape[2] // 14) == chosen.grid(*size)
    assert patches.dtype == np.float32
    assert patches.flags.c_contiguous
    assert (patches == patchify(pixels, 14)).all()


@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 2, 14]))
def test_patchify_by_definition(h: int, w: int, patch: int) -> None:
    pixels = np.random.default_rng(0).normal(size=(3, h * patch, w * patch)).astype(np.float32)
    patches = patchify(pixels, patch)
    assert patches.shape == (h * w, 3 * patch * patch)
    assert patches.dtype == np.float32
    for row in range(h):
        for column in range(w):
            piece = pixels[
                :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch
            ]
            assert (patches[row * w + column] == piece.ravel()).all()


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"resolution": "native", "min_pixels": 5000, "max_pixels": 90_000},
        {"size": {"shortest_edge": 126}},
        {"image_mean": [0.5, 0.4, 0.3], "resample": 2},
    ],
)
@pytest.mark.parametrize("merge", [1, 2])
def test_settings_survive_writing_and_reading(change: dict[str, Any], merge: int) -> None:
    chosen = read(RELEASED | change, merge)
    again = read(json.loads(json.dumps(chosen.to_dict())), merge)
    image = noise_image(130, 61)
    assert (preprocess(image, again) == preprocess(image, chosen)).all()
    assert again.to_dict() == chosen.to_dict()


def test_an_absent_resolution_means_fixed_and_missing_bounds_are_the_released_ones() -> None:
    assert read({"size": 112}).resolution == "fixed"
    native = read({"resolution": "native"})
    assert (native.min_pixels, native.max_pixels) == (56 * 56, 14 * 14 * 50 * 80)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"resolution": "dynamic"}, "resolution must be"),
        ({"do_resize": False}, "do_resize"),
        ({"do_normalize": False}, "do_normalize"),
        ({"crop_size": 140}, "crop_size 140"),
        ({"size": {"height": 112, "width": 224}, "crop_size": None}, "not square"),
        ({"resolution": "native", "max_pixels": 100}, "max_pixels 100"),
        ({"resolution": "native", "min_pixels": 9000, "max_pixels": 8000}, "min_pixels 9000"),
        ({"image_mean": [0.5]}, "three values"),
        ({"image_mean": 0.5}, "does not fit"),
        ({"image_mean": ["a", "b", "c"]}, "does not fit.*'a'"),
        ({"image_std": [0.2, 0, 0.2]}, "image_std must be positive"),
        ({"min_pixels": "many"}, "does not fit.*many"),
        ({"resample": 17}, "from 0 to 5, not 17"),
        ({"size": "large"}, "not square: 'large'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read(RELEASED | change)


def encoded(image: Image.Image, kind: str) -> bytes:
    file = BytesIO()
    image.save(file, kind, quality=90)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_files_of_every_kind(kind: str) -> None:
    """Bytes give what Pillow's own decoding gives."""
    data = encoded(noise_image(90, 70), kind)
    processor = VoRAImageProcessor(read(RELEASED))
    got = processor([data, data], return_tensors="np")["pixel_values"]
    with Image.open(BytesIO(data)) as image:
        want = patchify(preprocess(image, read(RELEASED)), 14)
    assert (got == np.concatenate([want, want])).all()


@pytest.mark.parametrize("resolution", ["fixed", "native"])
def test_scaled_decoding_stays_near_and_keeps_the_grid(resolution: str) -> None:
    chosen = read(RELEASED | {"resolution": resolution, "max_pixels": 112 * 112})
    # As smooth as photographs of that many pixels are.
    image = noise_image(163, 122).resize((1301, 977), Image.Resampling.BICUBIC)
    data = encoded(image, "JPEG")
    image, size = decode(data, chosen, scaled_jpeg=True)
    assert size == (1301, 977)
    assert image.width * 4 <= 1304
    processor = VoRAImageProcessor(chosen)
    whole, scaled = (processor([data], scaled_jpeg=choice) for choice in (False, True))
    assert (whole["image_grid_hw"] == scaled["image_grid_hw"]).all()
    difference = np.abs(whole["pixel_values"] - scaled["pixel_values"]).mean()
    assert 0 < difference < 0.05


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG\r\n", b"text", encoded(noise_image(90, 70), "JPEG")[:99]]
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"empty|broken or incomplete|none of the formats"):
        VoRAImageProcessor(read(RELEASED))([data])


def test_a_flipped_quirk_is_seen(oracle: Oracle) -> None:
    """White or cornered padding differs from ours, so the comparisons above can fail."""
    image = open_image("a.png")
    got = preprocess(image, read(RELEASED))
    for padding in ("white", "corner"):
        other = judge(oracle, RELEASED)
        other.padding = padding
        assert np.abs(got - other.pixels(image)).mean() > 0.1
    assert np.abs(got - judge(oracle, RELEASED).pixels(image)).mean() < 1e-6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(601, 901), (2000, 300), (512, 512)])
@pytest.mark.parametrize(
    "settings",
    [
        ImageSettings(),
        ImageSettings(resize_edge=512),
        ImageSettings(resolution="native", merge_size=2),
    ],
    ids=["fixed", "cropped", "native"],
)
def test_turned_pixels_are_those_of_the_turned_image(
    settings: ImageSettings,
    size: tuple[int, int],
    orientation: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Compiled: passes change places and weights are reversed; Pillow turns band by band."""
    noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    turned = image.transpose(TURNS[orientation]) if orientation > 1 else image
    compiled = [
        resized_rgb(source, settings, 2, orientation=orientation) for source in (image, noise)
    ]
    monkeypatch.setattr(bicubic, "available", lambda: False)
    plain = resized_rgb(turned, settings)
    monkeypatch.setattr(resampling, "BAND_PIXELS", 1 << 16)
    in_bands = [
        resized_rgb(source, settings, 2, orientation=orientation) for source in (image, noise)
    ]
    for result in (*compiled, *in_bands):
        np.testing.assert_array_equal(result, plain)


def test_pixels_without_a_copy() -> None:
    image = Image.new("RGB", (64, 48), (1, 2, 3))
    pixels = pixels_of(image)
    image.paste((9, 8, 7), (0, 0, 64, 1))
    assert pixels[0, 5, :3].tolist() == [9, 8, 7]
    assert pixels[1, 5, :3].tolist() == [1, 2, 3]
