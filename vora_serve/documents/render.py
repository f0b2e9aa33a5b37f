"""The program: a PDF file on standard input, its pages as PNG files on standard output.

The answer is a sequence of records: a byte that names the kind, four bytes of length (big-endian),
and so many bytes. Kinds: ``p`` a page's PNG file; ``r`` a refusal, as JSON with a ``code``; ``e``
the end, without which what came before is not to be used.
"""

from __future__ import annotations

import json
import math
import struct
import sys
import zlib
from collections.abc import Iterator
from typing import Any, NoReturn

from vora_serve.documents.sandbox import lock_down

_MAX_SIDE = 16_384
_POINTS_PER_INCH = 72

Record = tuple[bytes, bytes]


def write_record(kind: bytes, content: bytes = b"") -> None:
    """Send a record."""
    sys.stdout.buffer.write(kind + struct.pack(">I", len(content)) + content)


def png(pixels: memoryview, width: int, height: int, stride: int) -> bytes:
    """A PNG file of RGB pixels, ``height`` rows of ``stride`` bytes each."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    rows = (pixels[at * stride : at * stride + 3 * width] for at in range(height))
    packed = zlib.compress(b"".join(b"\0" + row for row in rows), 1)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


def scale_of(width: float, height: float, dpi: float, max_pixels: int) -> float:
    """Pixels per point for a page of a size in points, within the bounds."""
    scale = dpi / _POINTS_PER_INCH
    scale = min(scale, math.sqrt(max_pixels / (width * height)))
    return min(scale, _MAX_SIDE / max(width, height))


def pages(content: bytes, limits: dict[str, Any]) -> Iterator[Record]:
    """The records of a file.

    Args:
        content: The file.
        limits: ``max_pages``; ``dpi``; ``max_pixels`` of a page.
    """
    import pypdfium2
    import pypdfium2.raw as pdfium

    try:
        document = pypdfium2.PdfDocument(content)
    except pypdfium2.PdfiumError as error:
        password = error.err_code in (pdfium.FPDF_ERR_PASSWORD, pdfium.FPDF_ERR_SECURITY)
        yield refusal("encrypted" if password else "broken")
        return
    # For the values in a form's fields. There is no JavaScript engine in this build of PDFium.
    document.init_forms()
    count = len(document)
    if count < 1:
        yield refusal("empty")
        return
    if count > limits["max_pages"]:
        yield refusal("too_many_pages", pages=count)
        return
    for index in range(count):
        page = document[index]
        width, height = page.get_size()
        if not (0 < width < math.inf and 0 < height < math.inf):
            yield refusal("broken")
            return
        scale = scale_of(width, height, limits["dpi"], limits["max_pixels"])
        bitmap = page.render(scale=scale, rev_byteorder=True)
        pixels = memoryview(bitmap.buffer).cast("B")
        yield b"p", png(pixels, bitmap.width, bitmap.height, bitmap.stride)
        pixels.release()
        bitmap.close()
        page.close()
    yield b"e", b""


def refusal(code: str, **values: int) -> Record:
    """The record that says why there are no pages, or no more."""
    return b"r", json.dumps({"code": code, **values}).encode()


def _warm_up() -> None:
    """Load whatever loads late, while it still may."""
    import pypdfium2

    document = pypdfium2.PdfDocument.new()
    document.new_page(8, 8).render(rev_byteorder=True).close()
    document.close()


def main() -> NoReturn:
    """Render one file within the limits that the first argument holds as JSON."""
    limits = json.loads(sys.argv[-1])
    _warm_up()
    lock_down(limits["max_memory_bytes"], limits["cpu_s"])
    content = sys.stdin.buffer.read()
    try:
        for kind, payload in pages(content, limits):
            write_record(kind, payload)
    except MemoryError:
        write_record(*refusal("too_much_memory"))
    except Exception:  # noqa: BLE001 - whatever a hostile file provokes is that file's fault
        write_record(*refusal("broken"))
    sys.stdout.buffer.flush()
    sys.exit(0)


if __name__ == "__main__":
    main()
