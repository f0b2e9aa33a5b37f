"""Evaluation during training, on samples that are never trained on."""

import torch

from vora_serve.training.data import Tokeniser, collate
from vora_serve.training.data_recipe import Data
from vora_serve.training.evaluate import right_answers
from vora_serve.training.step import TrainingModel
from vora_serve.training.stream import Shard


class HeldOutSet:
    """Samples that a run is evaluated on while it lasts.

    Args:
        data: their sources; never packed.
        tokeniser: turns samples into examples.
        samples: how many.
        every: in steps.
        batch_size: in one pass.
    """

    def __init__(
        self, data: Data, tokeniser: Tokeniser, samples: int, every: int, batch_size: int
    ) -> None:
        shard = Shard(data, tokeniser, seed=0, number=0)
        self.every = every
        examples = [next(shard) for _ in range(samples)]
        examples.sort(key=lambda example: len(example.input_ids))
        pad_id = tokeniser.processor.tokenizer.pad_token_id
        self.groups = [
            (examples[g : g + batch_size], pad_id) for g in range(0, samples, batch_size)
        ]

    @torch.no_grad()
    def evaluate(self, module: TrainingModel, device: torch.device) -> dict[str, float]:
        """Mean loss of a target, and the share of answers that greedy decoding gets right.

        Args:
            module: the model; not wrapped, since every process evaluates the same samples.
            device: where it lies.
        """
        module.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        right: list[bool] = []
        for examples, pad_id in self.groups:
            batch = collate(examples, pad_id).to(device)
            losses = module(batch)
            sums += torch.tensor([float(losses["lm"]), float(losses["targets"])])
            # Sharded weights are whole only inside the module's own forward pass.
            if not module.options.touch_all:
                right += right_answers(module.model, batch, module.rule)
        module.train()
        found = {"held_out_lm": round(float(sums[0] / sums[1]), 6)}
        if right:
            found["held_out_accuracy"] = round(sum(right) / len(right), 6)
        return found
