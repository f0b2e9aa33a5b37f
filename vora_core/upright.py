"""An image as it is to be seen, a band of rows at a time. Needs numpy and Pillow only."""

from __future__ import annotations

from PIL import Image

from vora_core.bicubic_weights import UInt8Array
from vora_core.pixel_memory import image_of

#: How pixels are turned, by EXIF's orientation.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Upright:
    """Pixels that are turned, and made into a Pillow image, only where they are asked for.

    A copy of a whole photograph, turned, would take as much memory again.

    Args:
        source: an image of mode RGB; or pixels, uint8 (H, W, 3 or 4), a fourth channel being
            unused.
        orientation: EXIF's, 1 to 8: how the pixels are to be turned.
    """

    def __init__(self, source: Image.Image | UInt8Array, orientation: int = 1) -> None:
        self._source = source
        self._orientation = orientation
        if isinstance(source, Image.Image):
            self._width, self._height = source.size
        else:
            self._height, self._width = source.shape[:2]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as it is to be seen."""
        if self._orientation >= 5:
            return self._height, self._width
        return self._width, self._height

    def rows(self, top: int, bottom: int) -> Image.Image:
        """Rows ``top`` to ``bottom``, an RGB image; the source itself where those are all."""
        width, height, turn = self._width, self._height, TURNS.get(self._orientation)
        if self._orientation in (3, 4):
            box = (0, height - bottom, width, height - top)
        elif self._orientation in (5, 6):
            box = (top, 0, bottom, height)
        elif self._orientation in (7, 8):
            box = (width - bottom, 0, width - top, height)
        else:
            box = (0, top, width, bottom)
        band = self._cut(box)
        return band if turn is None else band.transpose(turn)

    def _cut(self, box: tuple[int, int, int, int]) -> Image.Image:
        left, top, right, bottom = box
        if not isinstance(self._source, Image.Image):
            return image_of(self._source[top:bottom, left:right])
        whole = (0, 0, self._width, self._height)
        return self._source if box == whole else self._source.crop(box)
