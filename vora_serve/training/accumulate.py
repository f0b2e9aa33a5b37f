"""Losses and gradients of a whole step, on one process or many."""

import torch
from accelerate import Accelerator

from vora_serve.training.data import Batch
from vora_serve.training.parallel import Strategy
from vora_serve.training.step import TrainingModel


def accumulate(
    strategy: Strategy,
    module: TrainingModel,
    batches: list[Batch],
    accelerator: Accelerator,
) -> dict[str, float]:
    """Gradients of a whole step, micro-batch by micro-batch; each token weighs the same.

    Returns:
        ``loss`` (equation 4), ``lm``, ``distill`` and ``aux_i`` of the step, and its ``images``.
    """
    device = accelerator.device
    totals = torch.tensor(
        [
            sum(int((batch.labels[:, 1:] >= 0).sum()) for batch in batches),
            sum(int(batch.image_mask.sum()) for batch in batches),
            sum(len(batch.image_grid_hw) for batch in batches),
        ],
        device=device,
        dtype=torch.float64,
    )
    targets, image_tokens, images = accelerator.reduce(totals, reduction="sum").tolist()
    sums: dict[str, float] = {}
    if image_tokens:
        # Of a step with images, also where this process has none: the sums are added up below.
        sums |= {f"aux_{block}": 0.0 for block in module.blocks}
    for number, batch in enumerate(batches, 1):
        losses = strategy.forward(batch.to(device), last=number == len(batches))
        sums["lm"] = sums.get("lm", 0.0) + float(losses["lm"].detach()) / max(targets, 1)
        loss = losses["lm"] / max(targets, 1)
        if "image_tokens" in losses:
            share = losses["image_tokens"] / image_tokens
            aux = {k: v * share for k, v in losses.items() if k.startswith("aux_")}
            for key, value in aux.items():
                sums[key] = sums.get(key, 0.0) + float(value.detach())
            loss = loss + module.settings.weight * torch.stack(list(aux.values())).mean()
        strategy.backward(loss)
    if accelerator.num_processes > 1:
        keys = sorted(sums)
        values = torch.tensor([sums[k] for k in keys], device=device, dtype=torch.float64)
        sums = dict(zip(keys, accelerator.reduce(values, reduction="sum").tolist(), strict=True))
    blocks = [value for key, value in sums.items() if key.startswith("aux_")]
    distill = sum(blocks) / len(blocks) if blocks else 0.0
    weighted = module.settings.weight * distill
    named = {"loss": sums["lm"] + weighted, "lm": sums["lm"], "distill": distill, "images": images}
    return named | sums
