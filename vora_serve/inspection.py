"""``vora-serve inspect``: what a checkpoint is, as text or JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model_plugin.inspection import Inspection


def describe(found: Inspection) -> str:
    """The facts as lines of text."""
    from model_plugin.inspection import amount

    total = sum(found.parameters.values())
    rows = [
        ("checkpoint", found.path),
        ("layout", found.layout),
        ("files", found.files),
        ("stored as", ", ".join(f"{name} ({count:,})" for name, count in found.dtypes.items())),
        ("LLM", found.llm),
        ("embedder", found.vision),
        ("parameters", f"{total:,}"),
        *((f"  {part}", f"{count:,}") for part, count in found.parameters.items()),
        ("LoRA", found.lora),
        ("extra biases", _biases(found.extra_biases)),
        ("resolution", found.resolution),
        ("image tokens", ", ".join(f"{size}: {n}" for size, n in found.image_tokens.items())),
        ("weights", f"{amount(found.memory_bytes(2))} in 16 bits, "
                    f"{amount(found.memory_bytes(4))} in 32"),
        ("KV cache", f"{amount(found.kv_bytes_per_token)} a token in 16 bits, "
                     f"{amount(found.kv_bytes_per_token * found.context)} for a full context"),
        ("can be served", "yes" if found.can_be_served else "no: " + " ".join(found.problems)),
    ]  # fmt: skip
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)


def as_json(found: Inspection) -> str:
    """The facts as one JSON object."""
    return json.dumps(asdict(found) | {"can_be_served": found.can_be_served}, indent=2)


def _biases(kinds: dict[str, int]) -> str:
    if not kinds:
        return "none"
    return ", ".join(f"{kind} in {count} blocks" for kind, count in kinds.items())
