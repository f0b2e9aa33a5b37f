"""Keys for servers that run already: from a variable, or from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loadtest.servers import Server
from loadtest.settings import EngineSettings, ServerSpec
from vora_core.errors import ConfigError


def key(**more: Any) -> str | None:
    spec = ServerSpec(name="a", kind="url", url="http://127.0.0.1:9", **more)
    return Server(spec, EngineSettings(), Path("unused")).target.key


def test_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", "secret")
    path = tmp_path / "key"
    assert key() is None
    assert key(api_key_env="THE_KEY") == "secret"
    path.write_text("other\n")
    assert key(api_key_file=path) == "other"
    path.write_text("")
    assert key(api_key_file=path) is None
    with pytest.raises(ConfigError, match="cannot be read"):
        key(api_key_file=tmp_path / "nowhere")
