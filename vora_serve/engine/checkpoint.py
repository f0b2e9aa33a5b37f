"""Whether a path holds a checkpoint that can be served: read as plain JSON, in milliseconds."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vora_serve.errors import ConfigurationError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that looks servable."""

    location: str
    """Directory or hub id, as the engine gets it."""
    name: str
    """The name it is served under unless told otherwise."""
    local: bool


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"{path} is no checkpoint: it has no config.json.") from None
    except (OSError, ValueError):
        raise ConfigurationError(f"{path / 'config.json'} cannot be read as JSON.") from None
    if not isinstance(config, dict):
        raise ConfigurationError(f"{path / 'config.json'} holds no configuration.")
    return config


def check_checkpoint(model: str) -> Checkpoint:
    """Look at a checkpoint before an engine is started for it.

    Args:
        model: A directory, or a hub id such as ``org/name``.

    Raises:
        ConfigurationError: it is missing, of another kind, or has no weights or tokenizer.
    """
    path = Path(model).expanduser()
    if not path.exists():
        if _HUB_ID.fullmatch(model):
            return Checkpoint(model, model, local=False)
        raise ConfigurationError(f"The model path {model} does not exist.")
    if not path.is_dir():
        raise ConfigurationError(f"The model path {model} is no directory.")
    config = _read_config(path)
    kind = config.get("model_type")
    if kind != "vora":
        said = f"its model_type is {kind!r}" if kind else "it names no model_type"
        raise ConfigurationError(f"{model} is no VoRA checkpoint: {said}, not 'vora'.")
    if not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")):
        raise ConfigurationError(f"{model} has a configuration but no weights.")
    if not (path / "tokenizer.json").exists() and not (path / "vocab.json").exists():
        raise ConfigurationError(f"{model} has no tokenizer.")
    resolved = path.resolve()
    return Checkpoint(str(resolved), resolved.name, local=True)
