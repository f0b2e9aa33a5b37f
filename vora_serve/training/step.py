"""One training step's losses: language modelling, and distillation while pretraining."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from model_plugin import ConfigError, VoRAForCausalLM
from vora_serve.training.attention import Rule, attention_for
from vora_serve.training.data import Batch
from vora_serve.training.distill import AuxHeads, Teacher, captured, distilled_blocks
from vora_serve.training.encoder import EncoderEmbedding
from vora_serve.training.features import FeatureCache, fit_grid
from vora_serve.training.identity import fingerprint
from vora_serve.training.recipe import Distillation, Recipe


@dataclass(frozen=True)
class StepOptions:
    """How a step computes what it computes.

    Attributes:
        attention: the rule; the model's own when None.
        bf16: compute in bfloat16 (autocast); losses and weights that train stay as they are.
        loss_chunk: targets whose logits are held at a time, computed again in the backward pass;
            all at once when None.
        cache: the teacher's states on disk.
        touch_all: let every parameter take part in every step, as sharded gradients need.
    """

    attention: Rule | None = None
    bf16: bool = False
    loss_chunk: int | None = None
    cache: FeatureCache | None = None
    touch_all: bool = False

    @classmethod
    def of(cls, recipe: Recipe, cache: FeatureCache | None = None) -> "StepOptions":
        """What a recipe says of them."""
        return cls(
            attention=recipe.attention,
            bf16=recipe.optimisation.bf16,
            loss_chunk=recipe.optimisation.loss_chunk,
            cache=cache,
            touch_all=recipe.optimisation.sharding != "none",
        )


class TrainingModel(nn.Module):
    """A VoRA model with what it needs to learn: teacher and auxiliary heads.

    Args:
        model: the model.
        teacher: a vision teacher, or None.
        distillation: what is aligned with it.
        options: how a step computes.
        blocks: numbers of the blocks that are aligned; those that ``distillation`` names when None.

    Raises:
        ConfigError: distillation is asked for without a teacher, or teacher and model do not cut
            images into the same patches and the teacher does not see images at its own size.
    """

    def __init__(
        self,
        model: VoRAForCausalLM,
        teacher: Teacher | None,
        distillation: Distillation,
        options: StepOptions | None = None,
        blocks: list[int] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.settings = model, distillation
        self.options = options or StepOptions()
        self.which = "output" if distillation.alignment == "paper" else "input"
        self.blocks: list[int] = []
        self.aux_vision: AuxHeads | None = None
        self.teacher: list[Teacher] = []  # in a list: not to be trained, saved or sharded
        if distillation.mode == "none":
            return
        if teacher is None:
            raise ConfigError(f"Distillation is {distillation.mode}, but there is no teacher.")
        if teacher.bridge is None and teacher.patch_size != model.config.patch_size:
            raise ConfigError(
                f"The teacher's patches are {teacher.patch_size} pixels a side, the model's "
                f"{model.config.patch_size}; they must be equal."
            )
        layers = model.config.num_hidden_layers
        self.blocks = blocks or distilled_blocks(distillation, teacher.depth, layers)
        self.aux_vision = AuxHeads(self.blocks, model.config.hidden_size, teacher.hidden_size)
        self.teacher = [teacher]
        if self.options.cache is not None:
            self.options.cache.owner = fingerprint(teacher)

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Losses of a batch.

        Returns:
            ``lm``: summed cross-entropy of all targets; ``targets``: their number; with a teacher
            and images, ``aux_i``: mean distillation loss of block i over the batch's image tokens,
            and ``image_tokens``: their number.
        """
        # Without autocast's cache: it would keep a copy of every weight until the pass is over.
        with torch.autocast(
            batch.input_ids.device.type,
            torch.bfloat16,
            enabled=self.options.bf16,
            cache_enabled=False,
        ):
            return self._losses(batch)

    @property
    def rule(self) -> Rule:
        """The attention rule in force."""
        own: Rule = "bidirectional" if self.model.config.is_mm_prefix_lm else "causal"
        return self.options.attention or own

    def _losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        model = self.model
        has_images = len(batch.image_grid_hw) > 0
        embeds = model.embed(
            batch.input_ids,
            batch.pixel_values if has_images else None,
            batch.image_grid_hw if has_images else None,
        )
        only_images_train = not any(p.requires_grad for p in model.llm.parameters())
        if not has_images and (self.options.touch_all or only_images_train):
            # Into the blocks, so that the first one's backward pass is watched here as elsewhere.
            embeds = embeds + unused_terms(self).to(embeds.dtype)
        wanted = self.blocks if has_images else []
        attention = attention_for(batch, self.rule, model.llm.config._attn_implementation)
        with captured(list(model.llm.model.layers), wanted, self.which) as states:  # type: ignore[arg-type]
            hidden = model.llm.model(
                inputs_embeds=embeds,
                position_ids=batch.position_ids,
                use_cache=False,
                **attention,
            ).last_hidden_state
        losses = lm_loss(hidden, batch.labels, model.llm.lm_head, self.options.loss_chunk)
        if wanted and self.aux_vision is not None:
            seen = {i: states[i][batch.image_mask] for i in wanted}
            targets = self.targets(batch)
            for block, loss in self.aux_vision(seen, targets).items():
                losses[f"aux_{block}"] = loss
            losses["image_tokens"] = batch.image_mask.sum()
        return losses

    def targets(self, batch: Batch) -> list[torch.Tensor]:
        """The teacher's hidden states of the batch's image tokens, (tokens, D) for each block."""
        teacher, merge = self.teacher[0], self.model.config.spatial_merge_size
        grids = [(int(h), int(w)) for h, w in batch.image_grid_hw.tolist()]
        own = teacher.image_size // teacher.patch_size
        if teacher.bridge is None and any(grid != (own, own) for grid in grids):
            raise ConfigError(
                f"The teacher sees grids of {own}x{own} patches; pretrain at that fixed size."
            )
        patch = self.model.config.patch_size
        if len(set(grids)) == 1:
            pixels = unpatchify(batch.pixel_values, grids[0], patch)
            states = self._teacher_states(pixels)
            return [fit_grid(state, grids[0], merge).flatten(0, 1) for state in states]
        found: list[list[torch.Tensor]] = []
        pieces = batch.pixel_values.split([h * w for h, w in grids])
        for piece, grid in zip(pieces, grids, strict=True):
            states = self._teacher_states(unpatchify(piece, grid, patch))
            found.append([fit_grid(state, grid, merge).flatten(0, 1) for state in states])
        return [torch.cat(parts) for parts in zip(*found, strict=True)]

    def _teacher_states(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """The teacher's states of images, (B, N, D) for each distilled block."""
        teacher, cache = self.teacher[0], self.options.cache
        if cache is None:
            states: list[torch.Tensor] = teacher(pixels, self.blocks, self.which)
            return states
        names = [f"{self.which}.{block}" for block in self.blocks]
        keys = [cache.key(image) for image in pixels]
        found = [cache.get(key, names) for key in keys]
        missing = [i for i, states in enumerate(found) if states is None]
        if missing:
            fresh = teacher(pixels[missing], self.blocks, self.which)
            for place, index in enumerate(missing):
                mine = [state[place] for state in fresh]
                cache.put(keys[index], dict(zip(names, mine, strict=True)))
                # As if it had been read: a run must not depend on what was kept before.
                found[index] = [state.to(torch.bfloat16) for state in mine]
        by_block = zip(*(states for states in found if states is not None), strict=True)
        return [torch.stack([s.to(pixels.device) for s in states]) for states in by_block]


def compile_blocks(module: TrainingModel) -> None:
    """Have torch.compile make each of the LLM's blocks faster, in place.

    Block by block: one compilation serves them all, and the hooks that read the hidden states stay
    outside. Shapes are dynamic, since lengths of batches differ.
    """
    for block in module.model.llm.model.layers:
        block.forward = torch.compile(block.forward, dynamic=True)


def lm_loss(
    hidden: torch.Tensor, labels: torch.Tensor, lm_head: nn.Module, chunk: int | None = None
) -> dict[str, torch.Tensor]:
    """Next-token cross-entropy; logits are computed at targets only.

    Args:
        hidden: (B, T, hidden_size).
        labels: int64 (B, T), -100 where there is no target.
        lm_head: hidden states to logits.
        chunk: targets whose logits are held at a time; all at once when None.

    Returns:
        ``lm``: sum over targets; ``targets``: their number.
    """
    following = labels[:, 1:]
    chosen = following >= 0
    states, targets = hidden[:, :-1][chosen], following[chosen]

    def part(rows: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(lm_head(rows).float(), wanted, reduction="sum")

    if chunk is None or len(targets) <= chunk:
        total = part(states, targets)
    else:
        pieces = zip(states.split(chunk), targets.split(chunk), strict=True)
        parts = [checkpoint(part, *piece, use_reentrant=False) for piece in pieces]
        total = torch.stack(parts).sum()
    return {"lm": total, "targets": chosen.sum()}


def unpatchify(patches: torch.Tensor, grid: tuple[int, int], patch_size: int) -> torch.Tensor:
    """Flattened patches of images of one size back to pixels.

    Args:
        patches: (B * h * w, 3 * P * P).
        grid: (h, w).
        patch_size: P.

    Returns:
        (B, 3, h * P, w * P).
    """
    h, w = grid
    blocks = patches.view(-1, h, w, 3, patch_size, patch_size)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, h * patch_size, w * patch_size)


def unused_terms(module: TrainingModel) -> torch.Tensor:
    """Zero, through every parameter that a batch without images leaves out.

    Sharded gradients are summed collectively: a process whose micro-batch has no image must still
    take part for the embedder and the heads. And where the LLM is frozen, a micro-batch without
    images has nothing else to learn from.
    """
    embedder: Any = module.model.vision_embedding
    device = next(embedder.parameters()).device
    is_encoder = isinstance(embedder, EncoderEmbedding)
    grid: int = embedder.grid if is_encoder else embedder.merge_size
    patch = module.model.config.patch_dim
    pixels = torch.zeros(grid**2, patch, device=device)
    tokens: torch.Tensor = embedder(pixels, torch.tensor([[grid, grid]], device=device))
    total = tokens.sum()
    heads: nn.Module | None = module.aux_vision
    if heads is not None:
        for head in heads.children():
            total = total + head(tokens.float()).sum()
    return 0.0 * total
