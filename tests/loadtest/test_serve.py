"""Everything for real: built checkpoints, both engines, gateway, generator, report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from loadtest.analysis.summary import summarise
from loadtest.checkpoints import build_llava, build_vora
from loadtest.cli import main
from loadtest.drive.store import RunFolder
from loadtest.shapes import shape


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_tiny_against_tiny(tmp_path: Path) -> None:
    build_vora(tmp_path / "vora-tiny", shape("tiny"), merge=2)
    build_llava(tmp_path / "llava-tiny", shape("tiny"))
    preset = yaml.safe_load(
        (Path(main.__code__.co_filename).parent / "presets/tiny.yaml").read_text()
    )
    preset["servers"] = [s for s in preset["servers"] if s["name"] != "vora-again"]
    preset["compare"] = [["vora", "llava"], ["gateway", "vora"], ["delayed", "vora"]]
    preset["workloads"] = preset["workloads"][:2]
    preset["repeats"] = 3
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(preset).replace("{MODELS}", str(tmp_path)))
    out = tmp_path / "run"
    assert main(["run", str(file), "--out", str(out)]) == 0
    found = summarise(RunFolder(out))
    images, text = found["points"]
    for point in (images, text):
        assert not any(got["failed"] for got in point["servers"].values())
        delayed = {pair["first"]: pair for pair in point["compared"]}["delayed"]
        assert delayed["ttft"]["difference"]["value"] > 0.02
    servers = images["servers"]
    assert servers["vora"]["image_tokens"] == servers["vora"]["expected"]["image_tokens"] == 64
    assert servers["llava"]["image_tokens"] == servers["llava"]["expected"]["image_tokens"] == 256
    for got in servers.values():
        assert got["cpu_s_per_request"] > 0
        assert got["breakdown_ms"]["prefill"] > 0
        assert got["counters"]["mm_cache_hits"] == 0
    assert servers["gateway"]["breakdown_ms"]["gateway_overhead"] > 0
    assert "on paper" in (out / "report.html").read_text()
    assert json.loads((out / "results.json").read_text())["complete"]
