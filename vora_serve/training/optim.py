"""Optimizers and learning-rate schedules."""

import math
from collections.abc import Callable

import torch
from torch import nn

from vora_serve.training.recipe import Optimisation

#: Muon's steps have a fixed size whatever the gradient; this factor on AdamW's rate suits it.
_MUON_LR_FACTOR = 10.0


def make_optimizers(module: nn.Module, settings: Optimisation) -> list[torch.optim.Optimizer]:
    """Optimizers of the trainable parameters.

    Args:
        module: the model; frozen parameters are left out.
        settings: the recipe's.

    Returns:
        AdamW; with ``muon`` also Muon, for the matrices inside the LLM's blocks.
    """
    trainable = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    hidden = [
        p for n, p in trainable if settings.optimizer == "muon" and p.ndim == 2 and ".layers." in n
    ]
    taken = {id(p) for p in hidden}
    embedder = [p for n, p in trainable if "vision_embedding" in n and id(p) not in taken]
    taken |= {id(p) for p in embedder}
    rest = [p for _, p in trainable if id(p) not in taken]
    groups = [
        {"params": embedder, "lr": settings.embedder_lr or settings.lr},
        {"params": rest, "lr": settings.lr},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [group for group in groups if group["params"]],
            betas=settings.betas,
            weight_decay=settings.weight_decay,
        )
    ]
    if hidden:
        lr = settings.lr * _MUON_LR_FACTOR
        optimizers.append(torch.optim.Muon(hidden, lr=lr, weight_decay=settings.weight_decay))
    return optimizers


def make_schedule(settings: Optimisation) -> Callable[[int], float]:
    """Factor on the learning rate at each step, counted from 0."""

    def factor(step: int) -> float:
        if step < settings.warmup_steps:
            return (step + 1) / settings.warmup_steps
        if settings.schedule == "constant":
            return 1.0
        span = max(1, settings.steps - settings.warmup_steps)
        progress = min(1.0, (step - settings.warmup_steps) / span)
        end = settings.final_lr
        return end + 0.5 * (1 - end) * (1 + math.cos(math.pi * progress))

    return factor


class Rates:
    """The learning rates of a run's optimizers, step by step.

    Args:
        optimizers: with their peak rates.
        settings: the recipe's.
    """

    def __init__(self, optimizers: list[torch.optim.Optimizer], settings: Optimisation) -> None:
        self.groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self.peaks = [group["lr"] for group in self.groups]
        self.lr, self.schedule = settings.lr, make_schedule(settings)

    def set(self, step: int) -> float:
        """Set the rates of a step, counted from 0; returns that of ``lr``."""
        factor = self.schedule(step)
        for group, peak in zip(self.groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        return self.lr * factor
