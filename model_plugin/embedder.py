"""The patch embedder: what VoRA has in place of a vision encoder (section 3.1 of the paper).

Patches are projected, normalised, given learned positions and projected to the LLM's width. There
is no attention and no depth; seeing is left to the LLM.
"""

import torch
from torch import nn
from torch.nn import functional

from model_plugin.config import VoRAConfig


class RMSNorm(nn.Module):
    """Root mean square norm, computed in float32 (as AIMv2's patch embedding has it)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension; shape and dtype are kept."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return wide.type_as(x) * self.weight


class Patchifier(nn.Module):
    """Patch projection and norm.

    The projection is stored as a convolution, (C, 3, P, P), and applied as the matrix product that
    it is on patches that do not overlap.
    """

    def __init__(self, config: VoRAConfig) -> None:
        super().__init__()
        width, patch = config.vision_embedding_intermediate_size, config.patch_size
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)
        self.norm = RMSNorm(width, eps=config.rms_norm_eps)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """(N, 3 * P * P) to (N, C)."""
        projected = functional.linear(patches, self.proj.weight.flatten(1), self.proj.bias)
        normed: torch.Tensor = self.norm(projected)
        return normed


class VoRAVisionEmbedding(nn.Module):
    """Patches of any number of images to LLM tokens.

    Args:
        config: the model's configuration.
    """

    def __init__(self, config: VoRAConfig) -> None:
        super().__init__()
        width, merge = config.vision_embedding_intermediate_size, config.spatial_merge_size
        self.grid_size = config.grid_size
        self.merge_size = merge
        self.position_mode = config.position_mode
        self.patchifier = Patchifier(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid_size**2, width))
        self.out_proj = nn.Linear(width * merge**2, config.hidden_size, bias=False)

    def forward(self, pixel_values: torch.Tensor, image_grid_hw: torch.Tensor) -> torch.Tensor:
        """Embed the patches of a batch of images.

        Args:
            pixel_values: (sum of h * w, 3 * P * P), normalised patches, images one after another,
                each grid row-major.
            image_grid_hw: int (num_images, 2), patches down and across.

        Returns:
            (sum of h * w / m**2, hidden_size) in the dtype of the weights: the images' tokens, one
            image after another, each row-major.

        Raises:
            ValueError: the grids do not add up to the patches, or are no multiples of m.
        """
        grids: list[tuple[int, int]] = [(int(h), int(w)) for h, w in image_grid_hw.tolist()]
        counts = [h * w for h, w in grids]
        if sum(counts) != pixel_values.shape[0]:
            raise ValueError(
                f"{pixel_values.shape[0]} patches given, {sum(counts)} in image_grid_hw."
            )
        features = self.patchifier(pixel_values.to(self.out_proj.weight.dtype))
        features = features + torch.cat([self.positions(h, w) for h, w in grids])
        if self.merge_size > 1:
            pieces = zip(features.split(counts), grids, strict=True)
            features = torch.cat([self._unshuffle(piece, h, w) for piece, (h, w) in pieces])
        tokens: torch.Tensor = self.out_proj(features)
        return tokens

    def positions(self, h: int, w: int) -> torch.Tensor:
        """Position embeddings of an h x w grid, (h * w, C), row-major.

        With ``position_mode`` "released", an image of no more patches than the learned grid takes
        its first rows, whatever the shape; only a larger one is interpolated. With "interpolate",
        the learned grid is resized in 2-D for every shape but its own.
        """
        grid = self.grid_size
        learned = self.pos_embed[0]
        fits = (h, w) == (grid, grid)
        if fits or (self.position_mode == "released" and h * w <= grid * grid):
            return learned[: h * w]
        square = learned.T.reshape(1, -1, grid, grid)
        # In float32, whatever the weights: half precision would blur the coordinates.
        resized = functional.interpolate(
            square.float(), size=(h, w), mode="bilinear", align_corners=False
        )
        return resized.type_as(learned).flatten(2)[0].T

    def _unshuffle(self, features: torch.Tensor, h: int, w: int) -> torch.Tensor:
        """Fold m x m neighbours into one row: (h * w, C) to (h * w / m**2, C * m * m).

        Channels outermost, as in ``torch.nn.functional.pixel_unshuffle``.
        """
        m = self.merge_size
        if h % m or w % m:
            raise ValueError(f"A grid of {h}x{w} patches does not divide into {m}x{m} blocks.")
        blocks = features.view(h // m, m, w // m, m, -1).permute(0, 2, 4, 1, 3)
        return blocks.reshape(h * w // m**2, -1)
