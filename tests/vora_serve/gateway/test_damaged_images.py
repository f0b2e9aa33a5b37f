"""Every kind of damage to every kind of file: refused, unless the pixels are whole all the same."""

from __future__ import annotations

import random
from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from tests.vora_serve.gateway.conftest import LiveGateway
from tests.vora_serve.gateway.image_files import SCENE, WHOLE, decoded, encode, prepared
from tests.vora_serve.gateway.test_chat import data_url
from vora_core.errors import ImageRequestError, ImageTooLargeError
from vora_core.geometry import ImageSettings

READY = {"settings": ImageSettings(image_size=112, resize_edge=112)}

#: Compressed data in which some damage is other, valid data: no decoder can know.
_ANY_BITS_ARE_VALID = (
    *("WEBP", "lossless WEBP", "animated WEBP", "AVIF", "animated AVIF", "HEIC"),
    "PackBits TIFF",
)
_NOT_COMPRESSED = ("BMP", "TIFF", "16-bit TIFF")


def refused(content: bytes) -> bool:
    """By either way to an engine, alike."""
    answers = []
    for target in ({}, READY):
        try:
            prepared(content, **target)
        except (ImageRequestError, ImageTooLargeError) as error:
            answers.append(str(error))
        else:
            answers.append("")
    assert answers[0] == answers[1]
    assert answers[0].endswith(".") or not answers[0]
    return bool(answers[0])


@pytest.mark.parametrize("name", WHOLE)
def test_whole_files_are_taken(name: str) -> None:
    assert decoded(WHOLE[name]).shape == (90, 120, 3)
    assert not refused(WHOLE[name])


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9])
def test_cut_off_files(name: str, share: float) -> None:
    content = WHOLE[name]
    cut = content[: int(len(content) * share)]
    if name == "MPO" and share > 0.5:  # its second image is cut off, which nobody looks at
        assert (decoded(cut) == decoded(content)).all()
    else:
        assert refused(cut)


@pytest.mark.parametrize("name", [name for name in WHOLE if name != "MPO"])
@pytest.mark.parametrize("missing", [1, 2, 9])
def test_files_without_their_end(name: str, missing: int) -> None:
    content = WHOLE[name]
    if name.endswith("TIFF"):  # strip first, so that the end is data
        content, missing = moved_to_the_end(content), 2 * missing
    assert refused(content[:-missing])


def moved_to_the_end(content: bytes) -> bytes:
    """A TIFF file whose strips lie behind everything else; Pillow writes them so."""
    with Image.open(BytesIO(content)) as image:
        tags = image.tag_v2  # type: ignore[attr-defined]
        end = tags[273][-1] + tags[279][-1]
    return content[:end]


HOLES: dict[str, Callable[[random.Random, int], bytes]] = {
    "zeros": lambda _, size: bytes(size),
    "noise": lambda source, size: source.randbytes(size),
}


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("hole", HOLES)
def test_holes_in_the_data(name: str, hole: str) -> None:
    """As a failed download leaves them: half of the first frame."""
    content = WHOLE[name]
    start = len(content) // (6 if "animated" in name or name == "MPO" else 3)
    size = len(content) // (8 if "animated" in name or name == "MPO" else 3)
    damaged = content[:start] + HOLES[hole](random.Random(1), size) + content[start + size :]
    assert len(damaged) == len(content)
    if name in _ANY_BITS_ARE_VALID or name in _NOT_COMPRESSED:
        refused(damaged)  # or not: no crash, no hang, no other answer by the other way
    else:
        assert refused(damaged)


@pytest.mark.parametrize("name", WHOLE)
def test_data_left_out(name: str) -> None:
    """Of the first frame, more than Huffman codes find their way back from by chance."""
    content = WHOLE[name]
    size = len(content) // (6 if "animated" in name or name == "MPO" else 3)
    assert refused(content[:size] + content[2 * size :])


CHECKED = ["PNG", "palette PNG", "PNG with alpha", "16-bit PNG", "deflated TIFF", "LZMA TIFF"]


@pytest.mark.parametrize("name", CHECKED)
def test_every_flipped_byte_where_there_are_checksums(name: str) -> None:
    content = moved_to_the_end(WHOLE[name]) if "TIFF" in name else WHOLE[name]
    # A TIFF's directory, in front, has none.
    for at in range(1000 if "TIFF" in name else 8, len(content), 331):
        damaged = content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]
        assert refused(damaged), at


@pytest.mark.parametrize("name", WHOLE)
def test_flipped_bits_anywhere_crash_nothing(name: str) -> None:
    content, source = WHOLE[name], random.Random(2)
    for _ in range(30):
        at = source.randrange(min(len(content), 700)) if source.random() < 0.5 else None
        at = source.randrange(len(content)) if at is None else at
        damaged = content[:at] + bytes([content[at] ^ 1 << source.randrange(8)]) + content[at + 1 :]
        refused(damaged)


@pytest.mark.parametrize("name", ["fax TIFF", "JPEG TIFF"])
def test_faults_that_libtiff_only_mentions(name: str) -> None:
    """A byte that no code begins with: Pillow alone gives pixels, and no error."""
    content = WHOLE[name]
    at = len(content) // 2
    damaged = content[:at] + b"\xff\x01\x00\x01" * 3 + content[at + 12 :]
    assert refused(damaged)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize(
    "trailing", [b"\0" * 100, b"\r\n", b"<!-- a comment -->" * 9], ids=["zeros", "line", "text"]
)
def test_what_trails_a_whole_file_does_no_harm(name: str, trailing: bytes) -> None:
    content = WHOLE[name]
    assert (decoded(content + trailing) == decoded(content)).all()


def test_libtiff_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """Callers could fill the log otherwise."""
    content = WHOLE["LZW TIFF"]
    assert refused(content[:3000] + bytes(3000) + content[6000:])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("cut", [b"", b"\xff\xd9"], ids=["no end", "an end put on"])
def test_half_a_jpeg(cut: bytes) -> None:
    content = WHOLE["JPEG"]
    assert refused(content[: len(content) // 2] + cut)


def test_colours_of_adobe() -> None:
    """YCCK is converted by its marker; CMYK is inverted, as Photoshop writes it."""
    shown = decoded(WHOLE["CMYK JPEG"]).astype(int)
    assert np.abs(shown - np.asarray(SCENE).astype(int)).mean() < 12
    assert np.abs(decoded(WHOLE["YCCK JPEG"]).astype(int) - shown).mean() > 20


def test_through_the_gateway(gateway: LiveGateway) -> None:
    """A 400 that says so, and the next request with the whole file is answered."""
    for name in ("PNG", "JPEG", "fax TIFF", "animated GIF", "HEIC"):
        content = WHOLE[name]
        answer = gateway.show(data_url(content[: len(content) // 2]))
        assert answer.status_code == 400, name
        error = answer.json()["error"]
        assert error["code"] == "invalid_image"
        assert error["message"] == "An image is broken or incomplete."
        assert error["param"] == "messages[0].content[1].image_url"
        assert gateway.show(data_url(content)).status_code == 200, name
    wrong = encode(SCENE, "ICO")
    assert gateway.show(data_url(wrong)).status_code == 400
