"""The adapters that this front end knows: loaded, in use, on their way out.

One registry for a process, as there is one engine. vLLM's own list of LoRA adapters follows it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model_plugin.engine.adapters.settings import HostLimits
from vora_core.adapter import (
    GENERATION_FILE,
    TEMPLATE_FILE,
    AdapterHeader,
    require_base,
    require_kernel_rank,
)
from vora_core.checkpoint import CheckpointHeader, read_json
from vora_core.errors import CheckpointError, ConfigError
from vora_core.geometry import ImageSettings

#: Where ``mm_processor_kwargs`` and processed images name their adapter.
ADAPTER_KEY = "vision_adapter"
#: The adapter of the request that is being rendered.
CURRENT: ContextVar[LoadedAdapter | None] = ContextVar("vision_adapter", default=None)


@dataclass
class LoadedAdapter:
    """An adapter as this process knows it.

    Attributes:
        name: the model name that requests use.
        folder: where its files are.
        path: what vLLM gets as its path; ends in the hash of its contents, and is part of the keys
            of the prefix cache. The same name with other contents never shares a cache.
        digest: the hash of its contents.
        settings: its image settings.
        template: its chat template; the LLM's own when None.
        generation: its ``generation_config.json``.
        rank: of its factors.
        parameters: of factors and embedder.
        in_flight: requests that use it.
        draining: it takes no new requests.
    """

    name: str
    folder: Path
    path: Path
    digest: str
    settings: ImageSettings
    template: str | None
    generation: dict[str, Any]
    rank: int
    parameters: int
    in_flight: int = 0
    draining: bool = False

    @property
    def key(self) -> int:
        """What processed images carry: 63 bits of the hash, never 0."""
        return (int(self.digest[:16], 16) >> 1) or 1

    @property
    def defaults(self) -> dict[str, Any]:
        """Sampling where a request says nothing; greedy where its configuration does not sample."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        found = {name: self.generation[name] for name in names if name in self.generation}
        if self.generation.get("do_sample") is False:
            found.setdefault("temperature", 0.0)
        return found

    def card(self) -> dict[str, Any]:
        """What a list of adapters says of it."""
        return {
            "name": self.name,
            "sha256": self.digest,
            "rank": self.rank,
            "parameters": self.parameters,
            "max_image_tokens": self.settings.max_tokens,
            "in_flight": self.in_flight,
            "state": "draining" if self.draining else "loaded",
        }


@dataclass
class AdapterRegistry:
    """The adapters of one engine.

    Args:
        host: the LLM's headers.
        digest: the hash of its tensors.
        limits: what the engine has room for.
    """

    host: CheckpointHeader
    digest: str
    limits: HostLimits
    loaded: dict[str, LoadedAdapter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._store = tempfile.TemporaryDirectory(prefix="vora-adapters-")

    def prepare(self, name: str, folder: Path) -> LoadedAdapter:
        """Check an adapter and give it a path by its contents; it is not listed yet.

        Args:
            name: that requests will use.
            folder: of the adapter.

        Raises:
            CheckpointError: it is damaged, or belongs to another LLM.
            ConfigError: its rank or its images exceed what the engine has room for.
        """
        header = AdapterHeader.open(folder)
        require_kernel_rank(header, self.limits.rank)
        settings = header.image_settings
        if settings.max_tokens > self.limits.image_tokens:
            raise ConfigError(
                f"The adapter {folder} makes up to {settings.max_tokens} tokens of an image; this "
                f"engine was started for up to {self.limits.image_tokens} "
                "(--adapter-image-tokens)."
            )
        require_base(header, self.host, self.digest)
        path = Path(self._store.name) / header.digest
        if not path.is_symlink():
            path.symlink_to(folder.resolve())
        template, generation = folder / TEMPLATE_FILE, folder / GENERATION_FILE
        return LoadedAdapter(
            name=name,
            folder=folder,
            path=path,
            digest=header.digest,
            settings=settings,
            template=template.read_text(encoding="utf-8") if template.is_file() else None,
            generation=read_json(generation) if generation.is_file() else {},
            rank=header.rank,
            parameters=header.parameters,
        )

    def forget(self, adapter: LoadedAdapter) -> None:
        """Take an adapter out, with the path that vLLM had of it."""
        del self.loaded[adapter.name]
        adapter.path.unlink(missing_ok=True)

    def by_key(self, key: object) -> LoadedAdapter:
        """The adapter with this key.

        Raises:
            CheckpointError: there is none.
        """
        for adapter in self.loaded.values():
            if adapter.key == key:
                return adapter
        raise CheckpointError("The request names a vision adapter that is not loaded.")

    def by_path(self, path: str) -> LoadedAdapter | None:
        """The adapter that vLLM knows by this path."""
        return next((a for a in self.loaded.values() if str(a.path) == path), None)

    def names(self) -> str:
        """The names of all adapters, for a sentence."""
        return ", ".join(sorted(self.loaded)) or "none are loaded"


_REGISTRY: AdapterRegistry | None = None


def set_registry(registry: AdapterRegistry | None) -> None:
    """Make a registry this process's."""
    global _REGISTRY
    _REGISTRY = registry


def registry() -> AdapterRegistry | None:
    """This process's registry; None where no adapters are served."""
    return _REGISTRY


@contextmanager
def rendering(adapter: LoadedAdapter | None) -> Iterator[None]:
    """Render for this adapter meanwhile."""
    token = CURRENT.set(adapter)
    try:
        yield
    finally:
        CURRENT.reset(token)


def key_of(prompt: Any) -> int | None:
    """The adapter key that a prompt carries, or that of the request being rendered."""
    given = (prompt.get("mm_processor_kwargs") or {}).get(ADAPTER_KEY)
    if given is None:
        current = CURRENT.get()
        return current.key if current is not None else None
    found = registry()
    if isinstance(given, str) and found is not None and given in found.loaded:
        return found.loaded[given].key
    return int(given)
