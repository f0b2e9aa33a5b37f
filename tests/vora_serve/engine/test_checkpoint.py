"""What is refused before an engine is started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vora_core.errors import CheckpointError
from vora_serve.engine import check_checkpoint

FIXTURES = Path(__file__).parents[2] / "fixtures" / "released_vora_tiny"


@pytest.mark.parametrize("name", ["merged", "pretrain"])
def test_checkpoints_of_either_layout(name: str) -> None:
    """The engine merges LoRA layers while it loads, so that pretraining checkpoints are served."""
    found = check_checkpoint(str(FIXTURES / name))
    assert found.local
    assert found.name == name
    assert Path(found.location).is_absolute()


def test_a_hub_id() -> None:
    found = check_checkpoint("Org-1/VoRA-7B.v2")
    assert (found.location, found.local) == ("Org-1/VoRA-7B.v2", False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("teacher_clip", "model_type is 'clip_vision_model'"),
        ("expected", "has no config.json"),
        ("a.png", "is not a directory"),
        ("nothing/at/all", "does not exist"),
    ],
)
def test_refusals(name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        check_checkpoint(str(FIXTURES / name))


@pytest.mark.parametrize("config", ["nonsense", "[]", "{}", '{"model_type": 5}'])
def test_broken_configurations(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError):
        check_checkpoint(str(tmp_path))


def test_no_weights_and_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vora"}))
    with pytest.raises(CheckpointError, match="no weights"):
        check_checkpoint(str(tmp_path))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="no tokenizer"):
        check_checkpoint(str(tmp_path))
