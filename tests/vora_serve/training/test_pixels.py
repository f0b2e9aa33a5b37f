"""What training learns from is what is served: a file in a row, and the same file in a request."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from model_plugin import ImageSettings, VoRAImageProcessor, VoRAProcessor
from model_plugin.decoding import LIMITS
from tests.vora_serve.training import files, world
from vora_core.image_files import read_header
from vora_core.pixels import byte_patches
from vora_core.ready_pixels import unpack
from vora_serve.gateway.images.prepare import Target, prepare
from vora_serve.training.conversations import read_row
from vora_serve.training.data import Tokeniser, collate
from vora_serve.training.data_recipe import Data
from vora_serve.training.stream import Shard

NATIVE = ImageSettings(resolution="native", min_pixels=28 * 28, max_pixels=140 * 140)
FIXED = ImageSettings(image_size=56, resize_edge=56)
CROPPED = ImageSettings(image_size=56, resize_edge=64)
#: Mode: formats that hold it.
KINDS = {
    "RGB": ("PNG", "JPEG", "WEBP", "BMP", "TIFF"),
    "L": ("PNG", "JPEG", "TIFF"),
    "LA": ("PNG",),
    "RGBA": ("PNG", "WEBP", "TIFF"),
    "P": ("PNG", "GIF"),
    "1": ("PNG",),
    "I;16": ("PNG", "TIFF"),
    "CMYK": ("JPEG", "TIFF"),
}


def image_file(mode: str, kind: str, size: tuple[int, int], orientation: int, seed: int) -> bytes:
    """A file of noise, half of it see-through where its mode knows that."""
    rng = np.random.default_rng(seed)
    width, height = size
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (height, width), dtype=np.uint16))
    else:
        noise = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
        image = Image.fromarray(noise)
        image = image if mode == "RGBA" else image.convert("RGB" if mode == "CMYK" else mode)
        image = image.convert("CMYK") if mode == "CMYK" else image
    options: dict[str, Any] = {"transparency": 3} if mode == "P" else {}
    if orientation > 1:
        exif = Image.Exif()
        exif[0x112] = orientation
        options["exif"] = exif
    if kind == "WEBP":
        options["lossless"] = True
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def served(content: bytes, settings: ImageSettings) -> tuple[torch.Tensor, list[int]]:
    """What the engine computes with, of an image in a request: 8-bit patches, normalised."""
    ready = prepare(content, read_header(content, LIMITS), Target(settings=settings))
    found = unpack(ready.content, settings)
    assert found is not None, "an engine of these settings takes them as they are"
    rgb, (width, height) = found
    pixels = np.frombuffer(rgb, np.uint8).reshape(height, width, 3)
    patches = torch.from_numpy(byte_patches(pixels, settings.patch_size)).double()
    mean, std = (
        torch.tensor(values, dtype=torch.float64).repeat_interleave(settings.patch_size**2)
        for values in (settings.image_mean, settings.image_std)
    )
    grid = [height // settings.patch_size, width // settings.patch_size]
    return (patches * settings.rescale_factor - mean) / std, grid


def tokeniser(settings: ImageSettings) -> Tokeniser:
    own = world.processor()
    return Tokeniser(VoRAProcessor(VoRAImageProcessor(settings), own.tokenizer), 800)


TOKENISERS = {settings: tokeniser(settings) for settings in (NATIVE, FIXED, CROPPED)}


@hypothesis_settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from([(mode, kind) for mode, kinds in KINDS.items() for kind in kinds]),
    st.tuples(st.integers(20, 400), st.integers(20, 400)),
    st.integers(1, 8),
    st.sampled_from(list(TOKENISERS)),
    st.integers(0, 1000),
)
def test_a_files_pixels_in_training_are_those_in_serving(
    what: tuple[str, str],
    size: tuple[int, int],
    orientation: int,
    settings: ImageSettings,
    seed: int,
) -> None:
    mode, kind = what
    turns = orientation if kind in ("JPEG", "PNG", "WEBP") else 1
    content = image_file(mode, kind, size, turns, seed)
    row = {"image": content, "conversations": files.turns(0)}
    batch = collate([TOKENISERS[settings](read_row(row))], pad_id=0)
    wanted, grid = served(content, settings)
    assert batch.image_grid_hw.tolist() == [grid]
    assert (batch.pixel_values - wanted).abs().max() < 2e-5


@pytest.mark.parametrize("form", ["a file beside the rows", "bytes in Parquet", "in a tar"])
def test_every_form_of_data_is_decoded_alike(tmp_path: Path, form: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = image_file("RGBA", "PNG", (90, 50), 6, seed=1)
    turns = files.turns(0)
    if form == "in a tar":
        file = files.write_members(
            tmp_path / "a.tar",
            {"0.png": content, "0.json": json.dumps({"conversations": turns}).encode()},
        )
    elif form == "bytes in Parquet":
        file = tmp_path / "a.parquet"
        frames = [{"bytes": content, "path": None}]
        pq.write_table(pa.Table.from_pylist([{"frames": frames, "conversations": turns}]), file)
    else:
        file = tmp_path / "a.jsonl"
        (tmp_path / "a.png").write_bytes(content)
        file.write_text(json.dumps({"image": "a.png", "conversations": turns}))
    data = Data(sources=[{"files": [str(file)]}], shuffle_buffer=1)
    example = next(Shard(data, TOKENISERS[NATIVE], seed=0, number=0))
    wanted, grid = served(content, NATIVE)
    assert example.image_grid_hw.tolist() == [grid]
    assert (example.pixel_values - wanted).abs().max() < 2e-5


def test_pillow_images_are_put_into_rgb_alike_and_left_alone() -> None:
    """Of samples that come as Pillow images, modes are treated alike; a file's turn is its own."""
    content = image_file("RGBA", "PNG", (90, 50), 1, seed=2)
    with Image.open(io.BytesIO(content)) as image:
        image.load()
    before = image.tobytes()
    got = VoRAImageProcessor(FIXED)([image], return_tensors="pt")["pixel_values"]
    assert (got - served(content, FIXED)[0]).abs().max() < 2e-5
    assert image.tobytes() == before
    assert image.mode == "RGBA"
