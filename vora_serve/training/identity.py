"""What a run's result depends on, so that a state is resumed by the run that it belongs to.

Steps (at a constant learning rate), workers, logging, limits and ways of computing may change
between two starts of a run. Anything else would make another model of it, and is refused.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel
from torch import nn

from model_plugin import VoRAProcessor

#: Keys of a recipe that do not change what a run computes.
_FREE = {
    "run",
    "out",
    "out_dtype",
    "held_out",
    "model.path",
    "model.attn_implementation",
    "model.chat_template",
    "teacher.path",
    "teacher.cache",
    "teacher.cache_gb",
    "data.max_skipped",
    "optimisation.micro_batch_size",
    "optimisation.workers",
    "optimisation.log_every",
    "optimisation.save_every",
    "optimisation.export_every",
    "optimisation.max_nonfinite_steps",
    "optimisation.gradient_checkpointing",
    "optimisation.compile",
    "optimisation.loss_chunk",
    "optimisation.sharding",
    "optimisation.tensorboard",
    "optimisation.wandb",
}

Identity = dict[str, Any]


def recipe_identity(recipe: BaseModel) -> Identity:
    """The values of a recipe that change a run's result, by dotted key."""
    flat = dict(_flatten(recipe.model_dump(mode="json"), ""))
    if flat.get("optimisation.schedule") == "constant":
        flat.pop("optimisation.steps", None)
    return {key: value for key, value in flat.items() if not _is_free(key)}


def parts_identity(
    model: nn.Module, teacher: nn.Module | None, processor: VoRAProcessor
) -> Identity:
    """Fingerprints of what a run starts from: weights, image settings, template, tokenizer."""
    vocabulary = sorted(processor.tokenizer.get_vocab().items())
    found = {
        "base model": fingerprint(model),
        "image settings": dict(sorted(processor.settings.to_dict().items())),
        "chat template": _digest(processor.chat_template.encode()),
        "tokenizer": _digest(repr(vocabulary).encode()),
    }
    if teacher is not None:
        found["teacher"] = fingerprint(teacher)
    return found


def fingerprint(module: nn.Module) -> str:
    """A digest of names, shapes and a sample of the values of a module's tensors."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // 4096)].to("cpu", torch.float32)
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(some.numpy().tobytes())
    return digest.hexdigest()


def differences(saved: Identity, given: Identity) -> list[str]:
    """What differs between two identities, a phrase each: ``lora_rank was 8, is 16``."""
    found = []
    for key in sorted(saved.keys() | given.keys()):
        old, new = saved.get(key), given.get(key)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(
                {f"{key}.{k}": v for k, v in old.items()},
                {f"{key}.{k}": v for k, v in new.items()},
            )
        elif " " in key or key in ("teacher", "tokenizer"):
            found.append(f"the {key} is another")
        else:
            found.append(f"{key} was {_shown(old)}, is {_shown(new)}")
    return found


def _flatten(value: Any, key: str) -> Any:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flatten(inner, f"{key}.{name}" if key else name)
    else:
        yield key, value


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(free + ".") for free in _FREE) or key.startswith(
        "data.max_skipped"
    )


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _shown(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 80 else text[:77] + "..."
