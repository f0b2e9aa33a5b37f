"""``vora-serve inspect``: every layout described right, defects named, nothing loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import FIXTURES, write_checkpoint
from vora_core.errors import CheckpointError
from vora_serve.inspection import as_json, describe, inspect


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from vora_serve.cli import main; main()", "inspect", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_released_fixture() -> None:
    run = command("--json", str(FIXTURES / "merged"))
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    tensors = load_file(FIXTURES / "merged" / "model.safetensors")
    assert sum(found["parameters"].values()) == sum(t.numel() for t in tensors.values())
    assert set(found["parameters"]) == {"LLM", "patch embedder"}
    assert found["can_be_served"]
    assert set(found["dtypes"]) == {"float32"}
    assert set(found["extra_biases"]) == {
        "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
    }  # fmt: skip
    assert found["image_tokens"]["640x480"] == 64
    assert found["resolution"].startswith("fixed")


def test_pretraining_layout_says_what_is_served() -> None:
    found = inspect(FIXTURES / "pretrain")
    merged = inspect(FIXTURES / "merged")
    assert found.layout.startswith("pretraining")
    assert found.lora.startswith("rank ")
    assert found.parameters["LoRA factors"] == 32_768
    assert found.parameters["distillation (left out when served)"] == 82_048
    assert found.served_parameters == merged.served_parameters
    assert found.can_be_served
    text = describe(found)
    assert "distillation" in text
    assert text.splitlines()[-1].endswith("yes")


@pytest.mark.parametrize("files", ["sharded", "bin", "sharded-bin"])
def test_files(tmp_path: Path, files: Any) -> None:
    found = inspect(
        write_checkpoint(
            tmp_path,
            files=files,
            llm="llama",
            biases=False,
            resolution="native",
            dtype=torch.bfloat16,
            spatial_merge_size=2,
        )
    )
    kind = "bin" if "bin" in files else "safetensors"
    assert found.files.startswith(f"{3 if 'sharded' in files else 1} {kind} file")
    assert set(found.dtypes) == {"bfloat16"}
    assert found.extra_biases == {}
    assert found.llm.startswith("llama, 3 layers, width 64")
    assert "2x2 patches a token" in found.vision
    # 640 x 480 is 22.9 x 17.1 units of 28 pixels.
    assert found.image_tokens["640x480"] == 23 * 17
    # Keys and values, 3 layers, 1 head of 32, 2 bytes.
    assert found.kv_bytes_per_token == 2 * 3 * 32 * 2
    assert found.memory_bytes(2, 10) == found.served_parameters * 2 + 10 * 384


def test_defects_are_named(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path)
    file = path / "model.safetensors"
    tensors = load_file(file)
    extra = "llm.model.layers.0.mlp.w.weight"
    del tensors["vision_embedding.pos_embed"]
    save_file(tensors | {extra: torch.zeros(3)}, file)
    settings = json.loads((path / "preprocessor_config.json").read_text())
    (path / "preprocessor_config.json").write_text(json.dumps(settings | {"resolution": "huge"}))
    run = command(str(path))
    assert run.returncode == 1
    assert run.stderr == ""
    verdict = run.stdout.splitlines()[-1]
    assert verdict.split(maxsplit=3)[3].startswith("no: ")
    for word in (extra, "vision_embedding.pos_embed", '"fixed" or "native"'):
        assert word in verdict
    assert json.loads(as_json(inspect(path)))["can_be_served"] is False
    assert inspect(path).parameters["LLM"] > prod(tensors["llm.lm_head.weight"].shape)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    run = command(str(tmp_path))
    assert run.returncode == 2
    assert run.stderr.startswith("vora-serve: ")
    assert "no config.json" in run.stderr
    with pytest.raises(CheckpointError):
        inspect(tmp_path / "absent")
