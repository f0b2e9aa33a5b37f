"""What a teacher says of images: at its own size where that differs, and kept on disk if asked."""

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn import functional

from vora_serve.training.run_recipe import TeacherSettings

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class PixelBridge:
    """From the model's pixels to those that a teacher was trained on.

    Attributes:
        model_mean, model_std: normalisation of the model's pixels.
        teacher_mean, teacher_std: normalisation that the teacher wants.
        image_size: side of the teacher's square, in pixels.
    """

    model_mean: Triple
    model_std: Triple
    teacher_mean: Triple
    teacher_std: Triple
    image_size: int

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) normalised for the model to (B, 3, S, S) normalised for the teacher.

        The image is resized whole (bicubic, antialiased), so that the teacher's patches still lie
        over the model's, stretched alike.
        """
        side = self.image_size
        if pixels.shape[-2:] != (side, side):
            pixels = functional.interpolate(
                pixels.float(), size=(side, side), mode="bicubic", antialias=True
            )
        model_mean, model_std, mean, std = (
            torch.tensor(values, device=pixels.device, dtype=pixels.dtype)[:, None, None]
            for values in (self.model_mean, self.model_std, self.teacher_mean, self.teacher_std)
        )
        return (pixels * model_std + model_mean - mean) / std

    @property
    def is_identity(self) -> bool:
        """Whether only the size may change."""
        same_mean = self.model_mean == self.teacher_mean
        return same_mean and self.model_std == self.teacher_std


def fit_grid(states: torch.Tensor, grid: tuple[int, int], merge: int) -> torch.Tensor:
    """A teacher's states, laid over the LLM's tokens.

    Args:
        states: (B, n * n, D), row-major.
        grid: patches of the model's images, (h, w).
        merge: m; m x m patches are one LLM token.

    Returns:
        (B, h * w / m**2, D): interpolated bilinearly where the grids differ, and averaged over what
        one token stands for.
    """
    side = round(states.shape[1] ** 0.5)
    if (side, side) == grid and merge == 1:
        return states
    square = states.transpose(1, 2).reshape(states.shape[0], states.shape[2], side, side)
    if (side, side) != grid:
        square = functional.interpolate(
            square.float(), size=grid, mode="bilinear", align_corners=False
        ).to(states.dtype)
    if merge > 1:
        square = functional.avg_pool2d(square, merge)
    return square.flatten(2).transpose(1, 2)


class FeatureCache:
    """A teacher's hidden states by image, one file each, whole or absent.

    Worth it where images come again (several epochs, several runs on the same data) and are few:
    an image takes blocks x tokens x width x 2 bytes.

    Args:
        folder: made when needed.
        max_bytes: nothing is added beyond.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self.bytes = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
        self.hits = self.misses = 0
        #: Says whose states are meant; a folder may then serve several teachers.
        self.owner = ""

    @classmethod
    def of(cls, teacher: TeacherSettings | None) -> "FeatureCache | None":
        """The cache that a recipe asks for, if it does."""
        if teacher is None or teacher.cache is None:
            return None
        return cls(Path(teacher.cache), int(teacher.cache_gb * 1e9))

    def key(self, pixels: torch.Tensor) -> str:
        """Name of an image: a digest of its values, (3, H, W)."""
        data = pixels.detach().cpu().float().contiguous().numpy().tobytes()
        return hashlib.blake2b(data, digest_size=16, key=self.owner.encode()).hexdigest()

    def get(self, key: str, names: Sequence[str]) -> list[torch.Tensor] | None:
        """The states of these names, (N, D) each; None if any is not there."""
        file = self._file(key)
        try:
            with safe_open(str(file), framework="pt") as stored:
                found = [stored.get_tensor(name) for name in names]
        except (FileNotFoundError, OSError, SafetensorError):
            self.misses += 1
            return None
        self.hits += 1
        return found

    def put(self, key: str, states: dict[str, torch.Tensor]) -> None:
        """Keep an image's states, in bfloat16."""
        kept = {n: t.detach().to("cpu", torch.bfloat16).contiguous() for n, t in states.items()}
        size = sum(t.numel() * 2 for t in kept.values())
        if self.bytes + size > self.max_bytes:
            return
        file = self._file(key)
        file.parent.mkdir(exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
        os.close(handle)
        try:
            save_file(kept, temporary)
            os.replace(temporary, file)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        self.bytes += size

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"
