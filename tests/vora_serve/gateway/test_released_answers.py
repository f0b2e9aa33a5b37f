"""Native resolution through the gateway: what the released implementation computed, to 1e-4."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.vora_serve.gateway.real_engine import MODEL, serving
from tests.vora_serve.gateway.released import ENGINE, SETTINGS, check_released

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def test_native_resolution(tmp_path: Path) -> None:
    folder = tmp_path / "native"
    folder.mkdir()
    for file in MODEL.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    settings = json.loads((MODEL / "preprocessor_config.json").read_text())
    settings |= {"resolution": "native", "max_pixels": 14 * 14 * 200}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    config = tmp_path / "config.yaml"
    config.write_text(SETTINGS)
    with serving(
        tmp_path, "--config", str(config), model=folder, engine_arguments=ENGINE
    ) as served:
        check_released(served.url, "native_large", "native_large.png")
