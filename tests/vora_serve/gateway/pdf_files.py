"""PDF files written by hand: plain ones, and ones made to harm whoever reads them."""

from __future__ import annotations

import random
import zlib

RED, GREEN, BLUE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
NOISE = random.Random(5).randbytes(4096)


def build(objects: dict[int, bytes], trailer: bytes = b"") -> bytes:
    """A file of numbered objects, of which 1 is the catalog."""
    out = bytearray(b"%PDF-1.7\n")
    places = {}
    for number, content in objects.items():
        places[number] = len(out)
        out += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    start = len(out)
    size = max(objects) + 1
    out += b"xref\n0 %d\n" % size
    for number in range(size):
        if number in places:
            out += b"%010d 00000 n \n" % places[number]
        else:
            out += b"0000000000 65535 f \n"
    out += b"trailer\n<< /Size %d /Root 1 0 R %b >>\n" % (size, trailer)
    return bytes(out + b"startxref\n%d\n%%%%EOF\n" % start)


def stream(content: bytes, head: bytes = b"") -> bytes:
    """A stream object."""
    return b"<< /Length %d %b >>\nstream\n%b\nendstream" % (len(content), head, content)


def flate(content: bytes, head: bytes = b"") -> bytes:
    """A compressed stream object."""
    return stream(zlib.compress(content, 9), b"/Filter /FlateDecode " + head)


def filled(colour: tuple[float, float, float], width: int = 300, height: int = 200) -> bytes:
    """What draws a page of one colour."""
    return b"%g %g %g rg 0 0 %d %d re f" % (*colour, width, height)


def pages(
    *colours: tuple[float, float, float],
    box: tuple[float, ...] = (0, 0, 300, 200),
    content: bytes | None = None,
    page: bytes = b"",
    catalog: bytes = b"",
    more: dict[int, bytes] | None = None,
    trailer: bytes = b"",
) -> bytes:
    """A file with one page for each colour, all of one size in points.

    Args:
        colours: The pages'.
        box: The pages' media box.
        content: A content stream object instead of the colours.
        page, catalog, trailer: Further entries of those dictionaries.
        more: Further objects, numbered from 1000.
    """
    objects = {1: b"<< /Type /Catalog /Pages 2 0 R %b >>" % catalog}
    kids = []
    for index, colour in enumerate(colours):
        number = 10 + 2 * index
        kids.append(b"%d 0 R" % number)
        objects[number] = b"<< /Type /Page /Parent 2 0 R /MediaBox [%b] /Contents %d 0 R %b >>" % (
            b" ".join(b"%g" % side for side in box),
            number + 1,
            page,
        )
        objects[number + 1] = content or stream(filled(colour))
    objects[2] = b"<< /Type /Pages /Count %d /Kids [%b] >>" % (len(kids), b" ".join(kids))
    return build(objects | (more or {}), trailer)


def circle() -> bytes:
    """A page with a red circle on white."""
    curves = (
        b"1 1 1 rg 0 0 200 200 re f 0.86 0.16 0.16 rg 160 100 m 160 133 133 160 100 160 c "
        b"67 160 40 133 40 100 c 40 67 67 40 100 40 c 133 40 160 67 160 100 c f"
    )
    return pages(RED, box=(0, 0, 200, 200), content=stream(curves))


def _resources(entries: bytes) -> bytes:
    return b"/Resources << %b >>" % entries


def _image(width: int, height: int, data: bytes, head: bytes = b"") -> dict[int, bytes]:
    about = b"/Type /XObject /Subtype /Image /Width %d /Height %d " % (width, height)
    return {1000: stream(data, about + b"/Filter /FlateDecode " + head)}


def _compressed_zeros(size: int) -> bytes:
    """Deflated zeros, quickly written: each mebibyte is the same block. Only its end is missing."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return b"\x78\xda" + block * (size // 2**20)


def _many_laughs(depth: int = 10, width: int = 20) -> bytes:
    """Forms that each draw the next one many times: ``width ** depth`` in the end."""
    forms = {}
    for level in range(depth):
        body = b"/F Do " * width if level < depth - 1 else b"0 0 9 9 re f"
        inner = _resources(b"/XObject << /F %d 0 R >>" % (1001 + level))
        head = b"/Type /XObject /Subtype /Form /BBox [0 0 300 200] "
        forms[1000 + level] = stream(body, head + (inner if level < depth - 1 else b""))
    return pages(
        RED,
        content=stream(b"/F Do"),
        page=_resources(b"/XObject << /F 1000 0 R >>"),
        more=forms,
    )


def _page_tree_of_itself() -> bytes:
    return build(
        {
            1: b"<< /Type /Catalog /Pages 2 0 R >>",
            2: b"<< /Type /Pages /Count 3 /Kids [2 0 R 2 0 R 2 0 R] >>",
        }
    )


def _pages_by_doubling(levels: int) -> bytes:
    """A page tree in which each node names the next one twice: ``2 ** levels`` pages."""
    objects = {1: b"<< /Type /Catalog /Pages 10 0 R >>"}
    for level in range(levels):
        count, child = 2 ** (levels - level), 11 + level
        objects[10 + level] = b"<< /Type /Pages /Count %d /Kids [%d 0 R %d 0 R] >>" % (
            count, child, child,
        )  # fmt: skip
    objects[10 + levels] = b"<< /Type /Page /Parent 10 0 R /MediaBox [0 0 9 9] >>"
    return build(objects)


def _encrypted() -> bytes:
    entry = b"/Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O <%b> /U <%b> >> /ID [<00> <00>]"
    return pages(RED, trailer=entry % (b"11" * 32, b"22" * 32))


def _circular_xref() -> bytes:
    """Its table of objects names itself as the one before it, and its root is nowhere."""
    content = pages(RED)
    at = content.rindex(b"xref\n0")
    start = content.rindex(b"startxref")
    return content[:at] + b"xref\n0 0\ntrailer\n<< /Size 3 /Prev %d >>\n" % at + content[start:]


_SCRIPT = (
    b"/OpenAction << /S /JavaScript /JS "
    b"(while (true) { app.launchURL\\('http://127.0.0.1/'\\); }) >> "
    b"/AA << /WC << /S /Launch /F (/bin/sh) >> >> "
    b"/Names << /EmbeddedFiles << /Names [] >> >>"
)

#: Drawn like any other file: what is odd about them has no effect.
HARMLESS: dict[str, bytes] = {
    "JavaScript and a program to launch": pages(RED, catalog=_SCRIPT),
    "a page of a square kilometre": pages(RED, box=(0, 0, 3_000_000, 3_000_000)),
    "a form that draws itself": pages(
        RED,
        content=stream(b"/F Do"),
        page=_resources(b"/XObject << /F 1000 0 R >>"),
        more={
            1000: stream(
                b"/F Do",
                b"/Type /XObject /Subtype /Form /BBox [0 0 9 9] "
                + _resources(b"/XObject << /F 1000 0 R >>"),
            )
        },
    ),
    "a font from the server's files": pages(
        RED,
        content=stream(b"BT /F 24 Tf 9 9 Td (root) Tj ET"),
        page=_resources(
            b"/Font << /F << /Type /Font /Subtype /TrueType /BaseFont /DejaVuSans >> >>"
        ),
    ),
    "an image that fits no memory": pages(
        RED,
        content=stream(b"300 0 0 200 0 0 cm /I Do"),
        page=_resources(b"/XObject << /I 1000 0 R >>"),
        more=_image(
            30_000,
            30_000,
            _compressed_zeros(900 * 2**20),
            b"/ColorSpace /DeviceRGB /BitsPerComponent 8",
        ),
    ),
    "content from another file": pages(
        RED,
        content=stream(b"", b"/F (/etc/passwd)"),
    ),
}

#: Refused, each with a status and a code.
HOSTILE: dict[str, tuple[bytes, int, str]] = {
    "no pages": (
        build(
            {1: b"<< /Type /Catalog /Pages 2 0 R >>", 2: b"<< /Type /Pages /Kids [] /Count 0 >>"}
        ),
        400,
        "invalid_file",
    ),
    "many pages": (pages(*[RED] * 40), 400, "too_many_pages"),
    "a million pages by doubling": (_pages_by_doubling(20), 400, "invalid_file"),
    "a page as thin as a hair": (pages(RED, box=(0, 0, 14_400, 1)), 400, "invalid_image"),
    "a page of no size": (pages(RED, box=(0, 0, 0.001, 0.001)), 400, "image_too_small"),
    "forms that laugh": (_many_laughs(), 400, "invalid_file"),
    "a content stream of a gibibyte": (
        pages(RED, content=stream(_compressed_zeros(2**30), b"/Filter /FlateDecode ")),
        400,
        "invalid_file",
    ),
    "encrypted": (_encrypted(), 400, "encrypted_file"),
    "truncated": (pages(RED)[:150], 400, "invalid_file"),
    "noise": (b"%PDF-1.7\n" + NOISE, 400, "invalid_file"),
    "a mark alone": (b"%PDF-", 400, "invalid_file"),
    "an xref that points to itself": (_circular_xref(), 400, "invalid_file"),
    "a page tree of itself": (_page_tree_of_itself(), 400, "invalid_file"),
    "not a PDF": (b"PK\x03\x04" + NOISE, 400, "unsupported_file"),
    "HTML": (b"<html><iframe src='file:///etc/passwd'></html>", 400, "unsupported_file"),
    "PostScript": (b"%!PS-Adobe-3.0\n(/etc/passwd) (r) file", 400, "unsupported_file"),
    "a broken image": (b"\x89PNG\r\n\x1a\n" + NOISE, 413, "image_too_large"),
}
