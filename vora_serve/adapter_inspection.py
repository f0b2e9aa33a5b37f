"""``vora-serve inspect`` of a vision adapter: what it is, and whether it fits an LLM."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vora_core.adapter import (
    EMBEDDER_FILE,
    FACTORS_FILE,
    AdapterHeader,
    open_base,
    require_base,
    require_kernel_rank,
)
from vora_core.errors import VoRAError
from vora_core.identity import llm_digest
from vora_core.units import amount
from vora_serve.inspection import describe_resolution, describe_vision, image_tokens, table


@dataclass(frozen=True)
class AdapterInspection:
    """An adapter's facts.

    Attributes:
        path: its folder.
        sha256: the hash of its contents.
        base_name, base_sha256: the LLM that it was trained on.
        rank: of its LoRA factors.
        trained_rank: of those that it was truncated from; equal where it was not.
        energy: share of the updates' squared singular values that truncation kept.
        lora: rank and layers, in words.
        parameters: of factors and embedder.
        bytes: of their files.
        vision: geometry of the embedder, attention and positions.
        resolution: the resolution policy.
        image_tokens: size in pixels to LLM tokens.
        checked_against: folder of the LLM that it was compared with, if any.
        problems: why it cannot be served beside its LLM; empty if it can.
    """

    path: str
    sha256: str
    base_name: str
    base_sha256: str
    rank: int
    trained_rank: int
    energy: float
    lora: str
    parameters: dict[str, int]
    bytes: int
    vision: str
    resolution: str
    image_tokens: dict[str, int | str]
    checked_against: str | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def can_be_served(self) -> bool:
        """Whether nothing stands in the way."""
        return not self.problems


def inspect_adapter(folder: Path, base: Path | None = None) -> AdapterInspection:
    """Read an adapter's settings and headers; its files are hashed.

    Args:
        folder: of the adapter.
        base: an LLM to check it against; its weights are hashed.

    Raises:
        CheckpointError: it is no vision adapter, or a file is damaged.
        ConfigError: a value does not fit.
    """
    header = AdapterHeader.open(folder)
    settings = header.image_settings
    lora = header.settings.get("lora", {})
    problems = []
    try:
        require_kernel_rank(header)
        if base is not None:
            llm = open_base(base)
            require_base(header, llm, llm_digest(base, llm.config))
    except VoRAError as error:
        problems.append(str(error))
    layers = len(header.factors) // 2
    return AdapterInspection(
        path=str(folder),
        sha256=header.digest,
        base_name=header.base_name,
        base_sha256=header.base_digest,
        rank=header.rank,
        trained_rank=int(lora.get("trained_rank", header.rank)),
        energy=float(lora.get("energy", 1.0)),
        lora=f"rank {header.rank} on {layers} linear layers of {header.blocks} blocks",
        parameters={
            "LoRA factors": sum(e.count for e in header.factors.values()),
            "patch embedder": sum(e.count for e in header.embedder.values()),
        },
        bytes=sum((folder / name).stat().st_size for name in (FACTORS_FILE, EMBEDDER_FILE)),
        vision=describe_vision(header.vision),
        resolution=describe_resolution(settings),
        image_tokens=image_tokens(settings),
        checked_against=str(base) if base is not None else None,
        problems=problems,
    )


def describe(found: AdapterInspection) -> str:
    """The facts as lines of text."""
    truncated = (
        f", truncated from {found.trained_rank}, which keeps {found.energy:.2%} of the energy"
        if found.trained_rank != found.rank
        else ""
    )
    served = "yes, beside its LLM, or merged into it"
    if found.checked_against is not None:
        served = f"yes, beside {found.checked_against}"
    rows = [
        ("vision adapter", found.path),
        ("hash", found.sha256),
        ("trained on", f"{found.base_name}, whose tensors have the hash {found.base_sha256}"),
        ("files", amount(found.bytes)),
        ("parameters", f"{sum(found.parameters.values()):,}"),
        *((f"  {part}", f"{count:,}") for part, count in found.parameters.items()),
        ("LoRA", found.lora + truncated),
        ("embedder", found.vision),
        ("resolution", found.resolution),
        ("image tokens", ", ".join(f"{size}: {n}" for size, n in found.image_tokens.items())),
        ("can be served", served if found.can_be_served else "no: " + " ".join(found.problems)),
    ]
    return table(rows)


def as_json(found: AdapterInspection) -> str:
    """The facts as one JSON object."""
    return json.dumps(asdict(found) | {"can_be_served": found.can_be_served}, indent=2)
