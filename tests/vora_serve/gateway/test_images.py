"""Normalising images: what the engine gets is what a person would see."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import io
import struct
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from model_plugin.processor import VoRAImageProcessor
from tests.vora_serve.gateway.conftest import LiveGateway, Start, make_image
from tests.vora_serve.gateway.fake_engine import FakeEngine, running
from tests.vora_serve.gateway.fake_web import FakeWeb, response, serving
from tests.vora_serve.gateway.image_files import SCENE, WHOLE, decoded, encode, prepared
from tests.vora_serve.gateway.test_chat import data_url
from tests.vora_serve.gateway.test_streams import until
from vora_core.errors import ImageRequestError, ImageTooLargeError
from vora_core.geometry import ImageSettings as Geometry
from vora_core.pixels import byte_patches
from vora_core.ready_pixels import unpack
from vora_serve.gateway.images.addresses import AddressPolicy
from vora_serve.gateway.images.cache import ImageCache
from vora_serve.gateway.images.clean import CleanImage
from vora_serve.gateway.images.prepare import prepare
from vora_serve.gateway.images.urls import URLPolicy

GRADIENT = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled(kind: str) -> None:
    got = decoded(encode(Image.fromarray(GRADIENT), kind))
    assert np.abs(got[..., 0].astype(int) - GRADIENT / 257).max() <= 1


def test_floats_are_scaled() -> None:
    image = Image.fromarray((GRADIENT / 65535).astype(np.float32))
    got = decoded(encode(image, "TIFF"))
    assert np.abs(got[..., 0].astype(int) - GRADIENT / 257).max() <= 1


def test_sixteen_bit_colour() -> None:
    """Pillow cannot write it: one pixel row by hand."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    row = b"\0" + struct.pack(">6H", 65535, 32768, 0, 257, 514, 65280)
    content = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(row * 2))
        + chunk(b"IEND", b"")
    )
    assert decoded(content)[0].tolist() == [[255, 128, 0], [1, 2, 255]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation(kind: str, orientation: int) -> None:
    """The dark corner is put where a viewer shows it."""
    pixels = np.full((40, 24, 3), 255, np.uint8)
    pixels[:12, :8] = 0
    exif = Image.Exif()
    exif[0x112] = orientation
    upright = Image.fromarray(pixels)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation)
    stored = upright if undo is None else upright.transpose(Image.Transpose(undo))
    got = decoded(encode(stored, kind, exif=exif))
    assert got.shape == (40, 24, 3)
    assert got[3:9, 2:6].mean() < 60
    assert got[-9:, -6:].mean() > 200


@pytest.mark.parametrize(
    ("image", "kind", "save", "expected"),
    [
        (Image.new("RGBA", (4, 4), (200, 0, 0, 0)), "PNG", {}, (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (200, 0, 0, 128)), "PNG", {}, (227, 127, 127)),
        (Image.new("LA", (4, 4), (0, 128)), "PNG", {}, (127, 127, 127)),
        (Image.new("RGB", (4, 4), (9, 8, 7)), "PNG", {"transparency": (9, 8, 7)}, (255, 255, 255)),
        (Image.new("L", (4, 4), 9), "PNG", {"transparency": 9}, (255, 255, 255)),
        (Image.new("1", (4, 4), 1), "PNG", {}, (255, 255, 255)),
        (Image.new("CMYK", (4, 4), (255, 0, 0, 0)), "TIFF", {}, (0, 255, 255)),
        (Image.new("RGBA", (4, 4), (1, 2, 3, 0)), "WEBP", {"lossless": True}, (255, 255, 255)),
        (Image.new("RGB", (4, 4), (1, 2, 3)), "BMP", {}, (1, 2, 3)),
    ],
)  # fmt: skip
def test_modes(
    image: Image.Image, kind: str, save: dict[str, object], expected: tuple[int, ...]
) -> None:
    got = decoded(encode(image, kind, **save))[1, 1]
    assert np.abs(got.astype(int) - expected).max() <= 1


def test_palette_with_transparency() -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30] * 256)
    image.putpixel((1, 1), 1)
    got = decoded(encode(image, "PNG", transparency=0))
    assert got[0, 0].tolist() == [255, 255, 255]
    assert got[1, 1].tolist() == [10, 20, 30]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    content = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert decoded(content)[4, 4, 0] > 200


def test_plain_files_pass_as_they_are() -> None:
    for content in (make_image(kind="JPEG"), make_image(kind="PNG")):
        assert prepared(content).content == content
    assert prepared(make_image(), passthrough=False).content != make_image()


def test_passing_through_changes_no_pixel() -> None:
    noise = Image.effect_noise((100, 80), 90).convert("RGB")
    content = encode(noise, "JPEG", quality=80)
    with_passthrough = decoded(content)
    assert (with_passthrough == np.asarray(Image.open(io.BytesIO(content)))).all()


def test_pixel_budget() -> None:
    result = prepared(make_image(400, 100), max_pixels=10_000)
    assert (result.width, result.height) == (200, 50)


@given(
    st.binary(max_size=300), st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF"])
)
def test_any_bytes(junk: bytes, kind: str) -> None:
    """A real beginning, then anything: an image or one clean error."""
    content = make_image(16, 16, kind=kind)
    for at in (8, 20, len(content) // 2):
        with contextlib.suppress(ImageRequestError, ImageTooLargeError):
            prepared(content[:at] + junk + content[at + len(junk) :])


def test_detail_changes_nothing_unless_told(engine: FakeEngine, start_gateway: Start) -> None:
    def sizes(gateway: LiveGateway) -> list[tuple[int, int]]:
        engine.image_sizes.clear()
        for detail in ("low", "high"):
            url = {"url": data_url(make_image(400, 100)), "detail": detail}
            assert gateway.chat([{"type": "image_url", "image_url": url}]).status_code == 200
        return list(engine.image_sizes)

    assert sizes(start_gateway(engine.url)) == [(400, 100), (400, 100)]
    told = start_gateway(engine.url, images={"detail_pixels": {"low": 10_000}})
    assert sizes(told) == [(200, 50), (400, 100)]


def test_the_cache_asks_again_with_validators(engine: FakeEngine, start_gateway: Start) -> None:
    content = make_image()

    async def page(_: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        if headers.get("if-none-match") == '"v1"':
            writer.write(b'HTTP/1.1 304 Not Modified\r\netag: "v1"\r\n\r\n')
        else:
            writer.write(response(content, 'etag: "v1"'))
        await writer.drain()

    with serving(FakeWeb("127.0.0.2")) as web:
        web.pages["/kept.png"] = page
        web.pages["/private.png"] = response(content, "cache-control: no-store")
        gateway = start_gateway(
            engine.url,
            images={
                "allow_networks": ["127.0.0.2/32"],
                "cache": {"enabled": True, "ttl_s": 0.3},
            },
        )
        for _ in range(3):
            assert gateway.show(web.url("/kept.png")).status_code == 200
        assert len(web.requests) == 1
        import time

        time.sleep(0.35)
        assert gateway.show(web.url("/kept.png")).status_code == 200
        assert web.requests[-1][1]["if-none-match"] == '"v1"'
        for _ in range(2):
            gateway.show(web.url("/private.png"))
        assert [path for path, _ in web.requests].count("/private.png") == 2


def test_the_cache_is_bounded() -> None:
    cache = ImageCache(1000, 60)
    for index in range(10):
        cache.put(f"{index}", b"a" * 200, None, None)
    assert [cache.get(f"{index}") is not None for index in range(10)] == [False] * 5 + [True] * 5
    cache.put("large", b"a" * 900, None, None)
    assert cache.get("large") is None


def test_what_is_sent_to_hosts(engine: FakeEngine, start_gateway: Start) -> None:
    """Nothing of the caller's, nothing kept between requests, no compressed bodies asked for."""
    with serving(FakeWeb("127.0.0.2")) as web:
        web.pages["/a.png"] = response(make_image(), "set-cookie: a=b")
        gateway = start_gateway(engine.url, images={"allow_networks": ["127.0.0.2/32"]})
        for _ in range(2):
            gateway.show(web.url("/a.png"))
        for _, headers in web.requests:
            assert set(headers) == {"host", "user-agent", "accept", "accept-encoding", "connection"}
            assert headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("10.1.2.3", True),
        ("10.2.0.1", False),
        ("::ffff:10.1.2.3", True),
        ("::ffff:10.2.0.1", False),
        ("9.9.9.9", False),
        ("64:ff9b::909:909", False),
        ("169.254.169.254", False),
        ("168.63.129.16", False),
    ],
)
def test_address_policy(address: str, allowed: bool) -> None:
    import ipaddress

    policy = AddressPolicy(allow=["10.1.0.0/16", "169.254.0.0/16"], deny=["9.9.9.9/32"])
    assert policy.allowed(ipaddress.ip_address(address)) is allowed


def test_metadata_needs_its_own_entry() -> None:
    import ipaddress

    address = ipaddress.ip_address("169.254.169.254")
    assert AddressPolicy(allow=["169.254.169.254/32"]).allowed(address)


def test_host_lists() -> None:
    policy = URLPolicy(
        ["https"], allow_hosts=["*.example.org", "pics.test"], deny_hosts=["bad.example.org"]
    )
    assert policy.parse("https://A.Example.ORG./x?y#z").target == "/x?y"
    policy.parse("https://pics.test/")
    for refused in (
        "https://example.org/", "https://bad.example.org/", "https://evilexample.org/",
        "https://pics.test.evil/", "http://pics.test/",
    ):  # fmt: skip
        with pytest.raises(ImageRequestError):
            policy.parse(refused)


@given(st.text(max_size=60))
def test_any_url(text: str) -> None:
    """Parsed without credentials, backslashes or odd hosts; or one clean error."""
    policy = URLPolicy(["http", "https"])
    for url in (text, f"http://{text}", f"http://a.test/{text}", f"http://a.test:{text}"):
        try:
            parsed = policy.parse(url)
        except ImageRequestError:
            continue
        assert "\\" not in str(parsed)
        assert "@" not in parsed.host
        assert parsed.host.isascii()
        assert parsed.target.startswith("/")
        assert "\r" not in str(parsed)


def test_data_urls_with_line_breaks(gateway: LiveGateway) -> None:
    text = base64.encodebytes(make_image()).decode()
    assert gateway.show(f"data:image/png;base64,{text}").status_code == 200
    assert gateway.show(f"data:image/png;base64,{text.strip().rstrip('=')}").status_code == 200


# ---------------------------------------------------------------------- metadata, other frames


def test_metadata_neither_hinders_nor_leaves() -> None:
    """Megabytes of text, a broken profile, EXIF with a place: dropped, and no pixel changes."""
    info = PngImagePlugin.PngInfo()
    info.add_text("mxfile", "x" * 3_000_000, zip=True)
    info.add_itxt("XML:com.adobe.xmp", "y" * 2_000_000, zip=True)
    content = encode(SCENE, "PNG", pnginfo=info, icc_profile=b"z" * 2_000_000)
    assert (decoded(content) == np.asarray(SCENE)).all()
    assert prepared(content).content == WHOLE["PNG"]
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "secret place"
    jpeg = encode(SCENE, "JPEG", quality=90, exif=exif, comment=b"secret words")
    assert b"secret" in jpeg
    assert prepared(jpeg).content == WHOLE["JPEG"]


def test_the_first_image_of_an_mpo() -> None:
    other = Image.new("RGB", (120, 90), "red")
    content = encode(SCENE, "MPO", quality=90, save_all=True, append_images=[other])
    assert (decoded(content) == decoded(WHOLE["JPEG"])).all()
    assert len(prepared(content).content) < len(content) - 500


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
def test_sixteen_bit_tiff(compression: str | None) -> None:
    content = encode(Image.fromarray(GRADIENT), "TIFF", compression=compression)
    assert np.abs(decoded(content)[..., 0].astype(int) - GRADIENT / 257).max() <= 1


def test_turned_photographs_do_not_grow() -> None:
    """A JPEG stays a JPEG of its quality."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    large = SCENE.resize((1200, 900), Image.Resampling.BICUBIC)
    content = encode(large, "JPEG", quality=88, exif=exif)
    result = prepared(content)
    assert result.media_type == "image/jpeg"
    assert len(result.content) < 1.1 * len(content)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content)))).astype(int)
    assert np.abs(decoded(content).astype(int) - shown).mean() < 1


# ---------------------------------------------------------------------- ready pixels

FIXED = Geometry(image_size=112, resize_edge=112)
NATIVE = Geometry(resolution="native", merge_size=2, max_pixels=28 * 28 * 40)


@pytest.mark.parametrize("geometry", [FIXED, NATIVE], ids=["fixed", "native"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(120, 90), (90, 200), (900, 640)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_ready_pixels_are_the_processors(
    kind: str, size: tuple[int, int], orientation: int, geometry: Geometry
) -> None:
    """Bit for bit what the model's own processor makes of the image as a viewer shows it."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = encode(SCENE.resize(size), kind, exif=exif)
    shown = Image.open(io.BytesIO(content))
    shown.load()
    check_ready(content, ImageOps.exif_transpose(shown), geometry)


@pytest.mark.parametrize("geometry", [FIXED, NATIVE], ids=["fixed", "native"])
@pytest.mark.parametrize("name", [name for name in WHOLE if "16-bit" not in name])
def test_ready_pixels_of_every_kind(name: str, geometry: Geometry) -> None:
    check_ready(WHOLE[name], Image.open(io.BytesIO(WHOLE[name])), geometry)


def check_ready(content: bytes, shown: Image.Image, geometry: Geometry) -> None:
    result = prepared(content, settings=geometry)
    found = unpack(result.content, geometry)
    assert found is not None
    rgb, (width, height) = found
    got = np.frombuffer(rgb, np.uint8).reshape(height, width, 3)
    reference = VoRAImageProcessor(geometry)([shown.convert("RGB")], return_tensors="np")
    mean, std = (np.array(row, np.float64) for row in (geometry.image_mean, geometry.image_std))
    patches = byte_patches(got, geometry.patch_size).reshape(-1, 3, geometry.patch_size**2)
    scale = (geometry.rescale_factor / std).astype(np.float32)[:, None]
    normalised = patches * scale + (-mean / std).astype(np.float32)[:, None]
    np.testing.assert_array_equal(normalised.reshape(len(patches), -1), reference["pixel_values"])
    assert reference["image_grid_hw"].tolist() == [
        [height // geometry.patch_size, width // geometry.patch_size]
    ]
    assert result.tokens == geometry.num_tokens(*shown.size)


def test_other_settings_do_not_take_ready_pixels() -> None:
    content = prepared(WHOLE["PNG"], settings=FIXED).content
    assert unpack(content, FIXED) is not None
    assert unpack(content, NATIVE) is None
    assert unpack(content, Geometry(image_size=112, resize_edge=128)) is None
    assert unpack(content[:-1], FIXED) is None
    assert unpack(encode(SCENE, "PPM"), FIXED) is None
    assert Image.open(io.BytesIO(content)).size == (112, 112), "any decoder reads it"


@pytest.mark.parametrize("size", [(1600, 1200), (1200, 1600), (4000, 500)])
@pytest.mark.parametrize("geometry", [FIXED, NATIVE], ids=["fixed", "native"])
def test_fast_decoding_changes_little(geometry: Geometry, size: tuple[int, int]) -> None:
    content = encode(SCENE.resize(size, Image.Resampling.BICUBIC), "JPEG", quality=90)
    exact = prepared(content, settings=geometry)
    fast = prepared(content, settings=geometry, fast_decode=True)
    assert (fast.width, fast.height, fast.tokens) == (exact.width, exact.height, exact.tokens)
    a, b = (np.frombuffer(image.content, np.uint8).astype(int) for image in (exact, fast))
    assert 0 < np.abs(a - b).mean() < 2


# ---------------------------------------------------------------------- through the gateway


def sent(engine: FakeEngine) -> list[bytes]:
    """The images of the last request, as the engine got them."""
    parts = engine.seen[-1]["messages"][0]["content"]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [base64.b64decode(url.split(",", 1)[1]) for url in urls]


def test_engines_that_say_so_get_pixels(engine: FakeEngine, start_gateway: Start) -> None:
    engine.image_settings = asdict(FIXED)
    gateway = start_gateway(engine.url)
    answer = gateway.show(data_url(WHOLE["JPEG"]), data_url(WHOLE["PNG"]))
    assert answer.status_code == 200
    assert answer.headers["x-vora-images"] == "112x112=64, 112x112=64"
    for name, got in zip(("JPEG", "PNG"), sent(engine), strict=True):
        assert got == prepared(WHOLE[name], settings=FIXED).content
    card = gateway.client.get("/v1/models").json()["data"][0]
    assert "vora_images" not in card


def test_engines_that_say_what_nobody_understands_get_files(
    engine: FakeEngine, start_gateway: Start
) -> None:
    engine.image_settings = {"resolution": "of another release", "novelty": 1}
    gateway = start_gateway(engine.url)
    assert gateway.show(data_url(WHOLE["PNG"])).status_code == 200
    assert sent(engine) == [WHOLE["PNG"]]


def test_engines_that_disagree_get_files(engine: FakeEngine, start_gateway: Start) -> None:
    with running(FakeEngine()) as other:
        engine.image_settings = asdict(FIXED)
        gateway = start_gateway(engine.url, other.url)
        assert gateway.show(data_url(WHOLE["PNG"])).status_code == 200
        assert WHOLE["PNG"] in sent(engine if engine.seen else other)


@pytest.mark.parametrize(
    ("part", "request_fields", "tokens"),
    [
        ({}, {}, 40),
        ({"max_pixels": 28 * 28 * 10}, {}, 8),
        ({"image_url": {"max_pixels": 28 * 28 * 10}}, {}, 8),
        ({}, {"mm_processor_kwargs": {"max_pixels": 28 * 28 * 10}}, 8),
        ({"max_pixels": 28 * 28 * 20}, {"mm_processor_kwargs": {"max_pixels": 28 * 28 * 10}}, 15),
        ({"max_pixels": 10**9}, {}, 40),
    ],
)
def test_pixel_bounds_of_a_request(
    engine: FakeEngine,
    start_gateway: Start,
    part: dict[str, Any],
    request_fields: dict[str, Any],
    tokens: int,
) -> None:
    engine.image_settings = asdict(NATIVE)
    gateway = start_gateway(engine.url)
    url = data_url(encode(SCENE.resize((1000, 640)), "JPEG"))
    part = dict(part)
    image = {"type": "image_url", "image_url": {"url": url, **part.pop("image_url", {})}, **part}
    answer = gateway.chat([image], **request_fields)
    assert answer.status_code == 200, answer.text
    got = int(answer.headers["x-vora-images"].split("=")[1])
    assert got <= tokens
    assert got > tokens * 0.7
    assert "pixels" not in str(engine.seen[-1]).replace(url, "")[:2000].split("base64")[0]


def test_low_detail_of_native_models(engine: FakeEngine, start_gateway: Start) -> None:
    engine.image_settings = asdict(Geometry(resolution="native"))
    gateway = start_gateway(engine.url)
    url = data_url(encode(SCENE.resize((1000, 640)), "JPEG"))
    shown = {}
    for detail in ("low", "high", "auto"):
        image = {"type": "image_url", "image_url": {"url": url, "detail": detail}}
        answer = gateway.chat([image])
        width, height = answer.headers["x-vora-images"].split("=")[0].split("x")
        shown[detail] = int(width) * int(height)
    assert shown["low"] <= 512 * 512 < shown["high"] == shown["auto"]


def test_bounds_that_exclude_each_other(gateway: LiveGateway) -> None:
    image = {
        "type": "image_url",
        "image_url": data_url(make_image()),
        "min_pixels": 9,
        "max_pixels": 8,
    }
    answer = gateway.chat([image])
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "max_pixels"


@pytest.mark.parametrize("side", [(4032, 3024), (6000, 4000), (8160, 6120)])
def test_large_photographs(engine: FakeEngine, start_gateway: Start, side: tuple[int, int]) -> None:
    """Phones' photographs, portrait, several in a request: served, or refused for good."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    photo = encode(SCENE.resize(side, Image.Resampling.BICUBIC), "JPEG", quality=88, exif=exif)
    different = [photo[:2] + b"\xff\xfe\x00\x03" + bytes([at]) + photo[2:] for at in range(3)]
    for settings in (asdict(FIXED), None):
        engine.image_settings = settings
        answer = start_gateway(engine.url).show(*map(data_url, different))
        if settings is None and side[0] * side[1] > 33_000_000:  # written anew, turned
            assert answer.status_code == 413
            assert "images.decode_memory_bytes" in answer.json()["error"]["message"]
        else:
            assert answer.status_code == 200, answer.text


MEMORY = """
import io
import sys
from pathlib import Path

from vora_core.image_files import DecodeLimits, read_header
from vora_serve.gateway.images.prepare import Target, prepare
from vora_serve.gateway.memory import give_back_freed_memory


def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


give_back_freed_memory()
content = Path(sys.argv[1]).read_bytes()
header = read_header(content, DecodeLimits(52_000_000, 2, 200))
target = eval(sys.argv[2], {"Target": Target})
prepare(Path(sys.argv[3]).read_bytes(), header.__class__("PNG", 600, 600), target)
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
prepare(content, header, target)
print((resident("VmHWM") - before) / header.pixels, target.decode_bytes(header) / header.pixels)
"""


@pytest.mark.parametrize(
    ("mode", "kind", "save", "target"),
    [
        pytest.param("RGB", "JPEG", {}, "ready", marks=pytest.mark.slow),
        pytest.param("RGB", "JPEG", {"turned": True}, "ready", marks=pytest.mark.slow),
        pytest.param("RGB", "JPEG", {"turned": True}, "file", marks=pytest.mark.slow),
        pytest.param(
            "RGB", "JPEG", {"progressive": True, "subsampling": 0}, "ready", marks=pytest.mark.slow
        ),
        pytest.param("CMYK", "JPEG", {}, "ready", marks=pytest.mark.slow),
        pytest.param("RGBA", "PNG", {}, "ready", marks=pytest.mark.slow),
        ("RGBA", "PNG", {"compress_level": 1}, "as it is"),
        pytest.param("LA", "PNG", {}, "file", marks=pytest.mark.slow),
        pytest.param("P", "GIF", {}, "ready", marks=pytest.mark.slow),
        pytest.param("RGB", "WEBP", {"method": 0}, "ready", marks=pytest.mark.slow),
        pytest.param("RGB", "AVIF", {"speed": 10}, "ready", marks=pytest.mark.slow),
        pytest.param("RGB", "TIFF", {"turned": True}, "ready", marks=pytest.mark.slow),
    ],
)
def test_memory_is_known_before_decoding(
    mode: str, kind: str, save: dict[str, Any], target: str, tmp_path: Path
) -> None:
    """The process's peak is what the header promised, within what both passes of resizing take."""
    options = dict(save)
    if options.pop("turned", False):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        options["exif"] = exif
    large, small = tmp_path / "large", tmp_path / "small"
    large.write_bytes(encode(SCENE.resize((4000, 3000)).convert(mode), kind, **options))
    small.write_bytes(make_image(600, 600))
    geometry = "__import__('vora_core.geometry', fromlist=['x']).ImageSettings()"
    made = {
        "ready": f"Target({geometry})",
        "file": "Target(passthrough=False)",
        "as it is": "Target()",
    }[target]
    command = [sys.executable, "-c", MEMORY, str(large), made, str(small)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    used, promised = map(float, run.stdout.split())
    assert promised / 2 < used < promised + 1.5


def test_what_can_never_fit_is_refused_for_good(engine: FakeEngine, start_gateway: Start) -> None:
    gateway = start_gateway(engine.url, server={"max_body_memory_bytes": 100_000})
    noise = encode(Image.effect_noise((300, 300), 90), "PNG")
    answer = gateway.show(data_url(noise))
    assert answer.status_code == 413
    assert "server.max_body_memory_bytes" in answer.json()["error"]["message"]
    small = start_gateway(engine.url, images={"max_total_pixels": 20_000})
    answer = small.show(data_url(make_image(100, 120)), data_url(make_image(120, 100)))
    assert answer.status_code == 413
    assert "images.max_total_pixels" in answer.json()["error"]["message"]


def test_a_hundred_slow_hosts_keep_no_text_out(engine: FakeEngine, start_gateway: Start) -> None:
    """More slow images than there are places: text requests are answered meanwhile."""
    released = threading.Event()
    image = response(make_image())

    async def silence(_: str, __: dict[str, str], writer: asyncio.StreamWriter) -> None:
        while not released.is_set():
            await asyncio.sleep(0.01)
        writer.write(image)
        await writer.drain()

    with serving(FakeWeb("127.0.0.2")) as web, ThreadPoolExecutor(100) as pool:
        web.pages["/slow.png"] = silence
        patient = {"timeout_s": 600, "total_timeout_s": 600}
        gateway = start_gateway(
            engine.url,
            images={"allow_networks": ["127.0.0.2/32"], **patient},
            admission={"max_in_flight": 4, "max_queued": 200},
        )
        try:
            pending = [pool.submit(gateway.show, web.url("/slow.png")) for _ in range(99)]
            until(lambda: web.open >= 32)
            for _ in range(5):
                assert gateway.chat().status_code == 200
            assert not any(future.done() for future in pending), "the images were still awaited"
        finally:
            released.set()
        assert {future.result().status_code for future in pending} == {200}


HEADS = [
    "data:image;base64,",
    "data:image/jpg;base64,",
    "data:;base64,",
    "DATA:IMAGE/PNG;BASE64,",
    "data:image/png;charset=utf-8;base64,",
    "data:image/png;name=a.png;base64,",
    "data:image/*;base64,",
    "data:image/png; base64,",
    "data:application/octet-stream;base64,",
    "data:image/png;base64, ",
]


@pytest.mark.parametrize("head", HEADS)
def test_spellings_of_data_urls(gateway: LiveGateway, head: str) -> None:
    content = encode(SCENE, "PNG")
    plain = base64.b64encode(content).decode()
    for text in (
        plain,
        plain.rstrip("="),
        base64.urlsafe_b64encode(content).decode(),
        plain.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
        base64.encodebytes(content).decode().replace("\n", "\r\n"),
    ):
        assert gateway.show(head + text).status_code == 200


PNG_FILE = make_image(96, 96)
HOSTS = {
    "aws-chunked": response(PNG_FILE, "content-encoding: aws-chunked"),
    "a charset": response(PNG_FILE, "content-encoding: UTF-8"),
    "gzip": response(gzip.compress(PNG_FILE), "content-encoding: gzip"),
    "gzip that is not": response(PNG_FILE, "content-encoding: gzip"),
    "deflate": response(zlib.compress(PNG_FILE), "content-encoding: deflate"),
    "deflate that is not": response(PNG_FILE, "content-encoding: deflate"),
    "two": response(gzip.compress(PNG_FILE), "content-encoding: aws-chunked, gzip"),
    "br that is not": response(PNG_FILE, "content-encoding: br"),
}


@pytest.mark.parametrize("name", HOSTS)
def test_hosts_that_mislabel(engine: FakeEngine, start_gateway: Start, name: str) -> None:
    with serving(FakeWeb("127.0.0.2")) as web:
        web.pages["/my%20pic.png?a%20b"] = HOSTS[name]
        gateway = start_gateway(engine.url, images={"allow_networks": ["127.0.0.2/32"]})
        answer = gateway.show(web.url("/my pic.png?a b"))
        assert answer.status_code == 200, answer.text


def test_compressed_bodies_are_bounded(engine: FakeEngine, start_gateway: Start) -> None:
    with serving(FakeWeb("127.0.0.2")) as web:
        web.pages["/bomb"] = response(gzip.compress(bytes(50_000_000)), "content-encoding: gzip")
        web.pages["/cut"] = response(gzip.compress(PNG_FILE)[:-20], "content-encoding: gzip")
        gateway = start_gateway(engine.url, images={"allow_networks": ["127.0.0.2/32"]})
        assert gateway.show(web.url("/bomb")).status_code == 413
        assert gateway.show(web.url("/cut")).status_code == 400


def test_an_egress_proxy(engine: FakeEngine, start_gateway: Start) -> None:
    """The proxy gets the whole URL and resolves the name; private addresses stay refused."""
    with serving(FakeWeb("127.0.0.2")) as web:
        web.pages["http://pictures.example/a.png"] = response(PNG_FILE)
        gateway = start_gateway(
            engine.url, images={"proxy": f"http://me:secret@127.0.0.2:{web.port}"}
        )
        assert gateway.show("http://pictures.example/a.png").status_code == 200
        assert web.requests[-1][1]["proxy-authorization"] == "Basic bWU6c2VjcmV0"
        assert web.requests[-1][1]["host"] == "pictures.example"
        before = web.connections
        for url in ("http://127.0.0.2/a.png", "http://10.0.0.1/a.png", "http://a.example:22/"):
            assert gateway.show(url).status_code == 400
        assert web.connections == before


def test_a_chat_decodes_its_image_once(
    engine: FakeEngine, start_gateway: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vora_serve.gateway.images import loader

    prepared_files: list[bytes] = []

    def counting(content: bytes, *rest: Any) -> CleanImage:
        prepared_files.append(content)
        return prepare(content, *rest)

    monkeypatch.setattr(loader, "prepare", counting)
    engine.image_settings = asdict(FIXED)
    gateway = start_gateway(engine.url)
    for _ in range(10):
        assert gateway.show(data_url(WHOLE["JPEG"])).status_code == 200
        assert sent(engine) == [prepared(WHOLE["JPEG"], settings=FIXED).content]
    assert len(prepared_files) == 1
    without = start_gateway(engine.url, images={"prepared_cache_bytes": 0})
    for _ in range(2):
        without.show(data_url(WHOLE["JPEG"]))
    assert len(prepared_files) == 3
