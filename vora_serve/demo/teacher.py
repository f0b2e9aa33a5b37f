"""The demo world's vision teacher: a tiny AIMv2 or SigLIP, trained on labelled patches.

It learns what every patch shows (shape, colour, where the shape's centre lies) and what the
image shows as a whole (number of shapes, digit). Only its hidden states are used later: VoRA
learns to reproduce them, block by block.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import (
    Aimv2VisionConfig,
    Aimv2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from model_plugin.images import ImageSettings, preprocess
from vora_serve.demo.recipe import TeacherRecipe
from vora_serve.training.optim import make_optimizers, make_schedule
from vora_serve.world.digits import DigitImage, random_digit
from vora_serve.world.scenes import COLOURS, SHAPES, Scene, Split, coverage, random_scene, render

TeacherConfig: TypeAlias = Aimv2VisionConfig | SiglipVisionConfig

_COLOUR_NAMES = tuple(COLOURS)
#: Every n-th image is a digit.
DIGIT_EVERY = 4
_COVERED = 0.15
_CANON = 8
_CANON_REACH = 1.4
#: Scale of patches and positions at the start. They stay in every block's output, and cosine
#: distillation sees what blocks add to them the better, the smaller they are.
_EMBEDDING_SCALE = 0.25
_SHAPE_CLASSES = 1 + len(SHAPES) + 10


@dataclass(frozen=True)
class Labels:
    """What an image of G x G patches shows.

    Attributes:
        shape: int64 (G*G,), 0 for background, 1 + index in ``SHAPES``, or, where a digit's ink
            is, 1 + len(SHAPES) + digit.
        colour: int64 (G*G,), 0 for background, else 1 + index in ``COLOURS``; -100 on ink.
        offset: float32 (G*G, 2), from the patch's centre to that of its shape, in patches (x, y).
        cover: uint8 (G*G, 16), how much of each sixteenth of the patch is covered, 0..255.
        canon: uint8 (G*G, 64), the patch's shape, cut out and drawn 8 x 8, 0..255.
        count: number of shapes, 0 for a digit.
        digit: 0..9, or -100 when the image shows none.
    """

    shape: np.ndarray
    colour: np.ndarray
    offset: np.ndarray
    cover: np.ndarray
    canon: np.ndarray
    count: int
    digit: int


def scene_labels(scene: Scene, grid: int) -> Labels:
    """Labels of a scene after it was padded to a centred square of ``grid`` x ``grid`` patches.

    A patch belongs to the shape that covers most of it, if that is more than 15 %.
    """
    side = max(scene.width, scene.height)
    left, top = (side - scene.width) // 2, (side - scene.height) // 2
    best = np.full((grid, grid), _COVERED, np.float32)
    shape, colour = np.zeros((2, grid, grid), np.int64)
    offset = np.zeros((grid, grid, 2), np.float32)
    canon = np.zeros((grid, grid, _CANON**2), np.uint8)
    centres = np.arange(grid) + 0.5
    whole = Image.new("L", (side, side))
    for thing in scene.things:
        mask, (x, y) = coverage(scene, thing)
        canvas = Image.new("L", (side, side))
        canvas.paste(mask, (left + x, top + y))
        whole.paste(mask, (left + x, top + y), mask)
        covered = np.asarray(canvas.resize((grid, grid), Image.Resampling.BOX), np.float32) / 255
        won = covered > best
        best[won] = covered[won]
        shape[won] = 1 + SHAPES.index(thing.shape)
        colour[won] = 1 + _COLOUR_NAMES.index(thing.colour)
        unit = grid / side
        towards_x = (thing.x + left) * unit - centres[None, :]
        towards_y = (thing.y + top) * unit - centres[:, None]
        towards = np.stack(np.broadcast_arrays(towards_x, towards_y), -1)
        offset[won] = towards[won]
        reach = _CANON_REACH * thing.radius
        centre_x, centre_y = thing.x + left, thing.y + top
        canon[won] = _shrink(
            canvas, (centre_x - reach, centre_y - reach, centre_x + reach, centre_y + reach)
        )
    return Labels(
        shape.ravel(),
        colour.ravel(),
        offset.reshape(-1, 2),
        _patch_cover(whole, grid),
        canon.reshape(-1, _CANON**2),
        len(scene.things),
        digit=-100,
    )


def _shrink(canvas: Image.Image, box: tuple[float, float, float, float]) -> np.ndarray:
    """What lies in a box, 8 x 8, flattened, uint8; nothing lies beyond the canvas."""
    left, top = math.floor(box[0]), math.floor(box[1])
    size = math.ceil(box[2] - left)
    cut = canvas.crop((left, top, left + size, top + size))
    inner = (box[0] - left, box[1] - top, box[2] - left, min(box[3] - top, size))
    return np.asarray(cut.resize((_CANON, _CANON), Image.Resampling.BOX, box=inner)).ravel()


def _patch_cover(canvas: Image.Image, grid: int) -> np.ndarray:
    fine = np.asarray(canvas.resize((4 * grid, 4 * grid), Image.Resampling.BOX))
    return fine.reshape(grid, 4, grid, 4).transpose(0, 2, 1, 3).reshape(grid * grid, 16)


def digit_labels(drawn: DigitImage, grid: int) -> Labels:
    """Labels of a digit: its ink carries the digit as if it were a further kind of shape."""
    width, height = drawn.ink.size
    side = max(width, height)
    canvas = Image.new("L", (side, side))
    canvas.paste(drawn.ink, ((side - width) // 2, (side - height) // 2))
    covered = np.asarray(canvas.resize((grid, grid), Image.Resampling.BOX), np.float32) / 255
    inked = covered.ravel() > _COVERED
    shape = np.where(inked, 1 + len(SHAPES) + drawn.digit, 0)
    colour = np.where(inked, -100, 0)
    sample = np.round(drawn.sample * 255).astype(np.uint8).ravel()
    canon = np.where(inked[:, None], sample, np.uint8(0))
    offset = np.zeros((grid * grid, 2), np.float32)
    return Labels(shape, colour, offset, _patch_cover(canvas, grid), canon, 0, drawn.digit)


class LabelledImages(Dataset[dict[str, torch.Tensor]]):
    """Scenes and digits with labels, drawn when asked for; the same index gives the same image.

    Args:
        seed, split: of the random streams.
        size: number of images.
        settings: a fixed resolution.
    """

    def __init__(self, seed: int, split: Split, size: int, settings: ImageSettings) -> None:
        self.seed, self.split, self.size, self.settings = seed, split, size, settings

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """``pixel_values`` float32 (3, S, S) and the tensors of :class:`Labels`."""
        if not 0 <= index < self.size:
            raise IndexError(index)
        grid = self.settings.image_size // self.settings.patch_size
        if index % DIGIT_EVERY == 0:
            drawn = random_digit(self.seed, self.split, index)
            image, labels = drawn.image, digit_labels(drawn, grid)
        else:
            scene = random_scene(self.seed, self.split, index)
            image, labels = render(scene), scene_labels(scene, grid)
        return {
            "pixel_values": torch.from_numpy(preprocess(image, self.settings)),
            "shape": torch.from_numpy(labels.shape),
            "colour": torch.from_numpy(labels.colour),
            "offset": torch.from_numpy(labels.offset),
            "cover": torch.from_numpy(labels.cover),
            "canon": torch.from_numpy(labels.canon),
            "count": torch.tensor(labels.count),
            "digit": torch.tensor(labels.digit),
        }


class SupervisedTeacher(nn.Module):
    """A vision model with the heads that it is trained through.

    Args:
        config: of the vision model.
    """

    def __init__(self, config: TeacherConfig) -> None:
        super().__init__()
        is_siglip = isinstance(config, SiglipVisionConfig)
        self.vision = SiglipVisionModel(config) if is_siglip else Aimv2VisionModel(config)
        width = config.hidden_size
        self.patch_head = nn.Linear(width, _SHAPE_CLASSES + 1 + len(COLOURS) + 2 + 16 + _CANON**2)
        self.image_head = nn.Linear(width, 5 + 10)

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Losses and accuracies (scalars), by name; ``loss`` is the one to minimise."""
        hidden = self.vision(pixel_values=batch["pixel_values"].float()).last_hidden_state
        shape, colour, offset, cover, canon = self.patch_head(hidden).split(
            [_SHAPE_CLASSES, 1 + len(COLOURS), 2, 16, _CANON**2], dim=-1
        )
        count, digit = self.image_head(hidden.mean(1)).split([5, 10], dim=-1)
        on_shape = batch["colour"] > 0
        on_any = batch["shape"] > 0
        on_ink = batch["shape"] > len(SHAPES)
        losses = {
            "shape": _cross_entropy(shape[on_any], batch["shape"][on_any]),
            "colour": _cross_entropy(colour, batch["colour"]),
            "offset": functional.smooth_l1_loss(offset[on_shape], batch["offset"][on_shape]),
            "cover": functional.binary_cross_entropy_with_logits(cover, batch["cover"] / 255),
            "canon": functional.binary_cross_entropy_with_logits(
                canon[on_any], batch["canon"][on_any] / 255
            ),
            "count": _cross_entropy(count, batch["count"]),
            "digit": _cross_entropy(digit, batch["digit"]),
        }
        with torch.no_grad():
            right = {
                "shape_accuracy": _accuracy(shape, batch["shape"], on_shape),
                "colour_accuracy": _accuracy(colour, batch["colour"], on_shape),
                "count_accuracy": _accuracy(count, batch["count"], batch["count"] > 0),
                "ink_accuracy": _accuracy(shape, batch["shape"], on_ink),
                "digit_accuracy": _accuracy(digit, batch["digit"], batch["digit"] >= 0),
            }
        return {"loss": torch.stack(list(losses.values())).sum(), **losses, **right}


def teacher_config(recipe: TeacherRecipe, image_size: int, patch_size: int) -> TeacherConfig:
    """The teacher's architecture, for square images."""
    sizes: dict[str, Any] = {
        "hidden_size": recipe.hidden_size,
        "intermediate_size": recipe.mlp,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "image_size": image_size,
        "patch_size": patch_size,
        "attn_implementation": "sdpa",
    }
    if recipe.architecture == "siglip":
        return SiglipVisionConfig(**sizes, vision_use_head=False)
    return Aimv2VisionConfig(**sizes, use_head=False)


def train_teacher(
    recipe: TeacherRecipe,
    settings: ImageSettings,
    run_dir: Path,
    *,
    device: str = "cpu",
    workers: int = 2,
) -> tuple[Any, dict[str, float]]:
    """Train the teacher; a function of recipe and settings.

    Args:
        recipe: architecture, number of images, optimisation.
        settings: a fixed resolution.
        run_dir: gets ``metrics.jsonl`` lines of stage ``teacher``.
        device: that it trains on; the images lie there too.
        workers: processes that draw them.

    Returns:
        The vision model, and its losses and accuracies on validation images.
    """
    optimisation = recipe.optimisation
    torch.manual_seed(optimisation.seed)
    config = teacher_config(recipe, settings.image_size, settings.patch_size)
    module = SupervisedTeacher(config)
    grid = settings.image_size // settings.patch_size
    with torch.no_grad():
        table = position_table(grid, recipe.hidden_size)
        module.vision.embeddings.position_embedding.weight.copy_(_EMBEDDING_SCALE * table)
        if recipe.architecture == "aimv2":  # SigLIP does not normalise its patches
            module.vision.embeddings.rms_norm.weight.fill_(_EMBEDDING_SCALE)
    module.to(device)
    pool = draw_pool(
        LabelledImages(optimisation.seed, "train", recipe.images, settings), device, workers
    )
    optimizers = make_optimizers(module, optimisation)
    schedule = make_schedule(optimisation)
    base = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    picks = torch.Generator().manual_seed(optimisation.seed)
    run_dir.mkdir(parents=True, exist_ok=True)
    sums: dict[str, float] = {}
    module.train()
    bar = tqdm(range(optimisation.steps), desc="teacher", unit="step")
    for step in bar:
        for optimizer, lrs in zip(optimizers, base, strict=True):
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * schedule(step)
        rows = torch.randint(recipe.images, (optimisation.batch_size,), generator=picks)
        rows = rows.to(device)
        losses = module({name: tensor[rows] for name, tensor in pool.items()})
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(module.parameters(), optimisation.max_grad_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach().nan_to_num())
        if (step + 1) % optimisation.log_every == 0:
            means = {name: round(v / optimisation.log_every, 5) for name, v in sums.items()}
            line = {"stage": "teacher", "step": step + 1} | means
            with (run_dir / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            bar.set_postfix(loss=means["loss"], shape=means["shape_accuracy"])
            sums = {}
    held_out = LabelledImages(optimisation.seed, "validation", 512, settings)
    found = measure(module, held_out, device, workers)
    return module.vision.cpu(), found


@torch.no_grad()
def measure(
    module: SupervisedTeacher, images: LabelledImages, device: str = "cpu", workers: int = 2
) -> dict[str, float]:
    """Losses and accuracies of a teacher on images, by name."""
    module.eval()
    pool = draw_pool(images, device, workers)
    return {name: float(value) for name, value in module(pool).items()}


def draw_pool(
    images: LabelledImages, device: str = "cpu", workers: int = 2
) -> dict[str, torch.Tensor]:
    """All images of a set, drawn by a few processes; pixels in half precision to save memory."""
    loader = DataLoader(images, batch_size=64, num_workers=workers)
    parts: dict[str, list[torch.Tensor]] = {}
    for batch in tqdm(loader, desc="images", unit="batch"):
        batch["pixel_values"] = batch["pixel_values"].half()
        for name, tensor in batch.items():
            parts.setdefault(name, []).append(tensor.clone())
    return {name: torch.cat(tensors).to(device) for name, tensors in parts.items()}


def position_table(grid: int, width: int) -> torch.Tensor:
    """Sines and cosines of row and column, (grid * grid, width), as a start for learned positions.

    The wavelengths suit a small grid: from 4 patches to a few times its side.
    """
    frequencies = 0.5 * math.pi / 20.0 ** (torch.arange(width // 4) / (width // 4))
    angles = torch.arange(grid).float()[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = line[:, None, :].expand(grid, grid, -1)
    columns = line[None, :, :].expand(grid, grid, -1)
    return torch.cat([rows, columns], dim=-1).reshape(grid * grid, width)


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    labels = labels.flatten()
    total = functional.cross_entropy(
        logits.flatten(0, -2), labels, ignore_index=-100, reduction="sum"
    )
    return total / (labels != -100).sum().clamp(min=1)


def _accuracy(logits: torch.Tensor, labels: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    return (logits.argmax(-1)[where] == labels[where]).float().mean()
