"""A vision adapter as a tar archive in pieces that travel: ``cat adapter.tar.* | tar x``."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from vora_core.errors import CheckpointError

#: Bytes of a piece: below 16 MiB.
PIECE = 16_000_000
#: Of all of them: below 64 MiB.
TOTAL = 64_000_000
NAME = "adapter.tar."


def write_parts(adapter: Path, out: Path) -> list[Path]:
    """Write an adapter's files as pieces, in place of those of an earlier one.

    Args:
        adapter: its folder.
        out: folder for the pieces.

    Returns:
        The pieces, in order.

    Raises:
        CheckpointError: they would be more than ``TOTAL``.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for file in sorted(adapter.iterdir()):
            tar.add(file, file.name)
    content = buffer.getvalue()
    if len(content) > TOTAL:
        raise CheckpointError(f"The adapter has {len(content):,} bytes; {TOTAL:,} are allowed.")
    fresh = []
    for number, start in enumerate(range(0, len(content), PIECE)):
        fresh.append(out / f".{NAME}{number:02d}")
        fresh[-1].write_bytes(content[start : start + PIECE])
    for piece in find_parts(out):
        piece.unlink()
    return [piece.rename(out / piece.name[1:]) for piece in fresh]


def find_parts(folder: Path) -> list[Path]:
    """The pieces in a folder, in order."""
    return sorted(folder.glob(f"{NAME}[0-9][0-9]"))


def join_parts(folder: Path, out: Path) -> Path:
    """Put an adapter together again.

    Args:
        folder: with the pieces.
        out: folder of the adapter; made anew.

    Raises:
        CheckpointError: there are no pieces, or one is missing or damaged.
    """
    pieces = find_parts(folder)
    if not pieces:
        raise CheckpointError(f"There is no adapter in {folder}: no {NAME}00.")
    content = b"".join(piece.read_bytes() for piece in pieces)
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            out.mkdir(parents=True, exist_ok=True)
            tar.extractall(out, filter="data")
    except tarfile.TarError as error:
        raise CheckpointError(f"The adapter in {folder} is damaged: {error}.") from error
    return out
