"""Merging and exporting: equal to W + B A, streamed, verified on a probe, whole or absent."""

import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model_plugin import CheckpointError, VoRAForCausalLM
from model_plugin.checkpoint import Checkpoint
from model_plugin.export import merge_checkpoint
from model_plugin.verify import probe_logits, verify_merge
from tests.vora_serve.training import world

PRETRAIN = world.RELEASED / "pretrain"


def test_the_released_fixture_merges_to_w_plus_b_a(tmp_path: Path) -> None:
    merged = load_file(merge_checkpoint(PRETRAIN, tmp_path / "out") / "model.safetensors")
    stored = load_file(PRETRAIN / "model.safetensors")
    layers = [n.removesuffix(".lora_A.weight") for n in stored if n.endswith(".lora_A.weight")]
    assert len(layers) == 14
    for layer in layers:
        wanted = stored[f"{layer}.weight"].double() + (
            stored[f"{layer}.lora_B.weight"].double() @ stored[f"{layer}.lora_A.weight"].double()
        )
        assert (merged[f"{layer}.weight"].double() - wanted).abs().max() < 1e-6, layer
    biases = [n for n in stored if n.endswith("_proj.bias") and "aux" not in n]
    assert biases
    assert all(torch.equal(merged[n], stored[n]) for n in biases), "biases should be kept"
    assert not any("lora" in n or "aux" in n for n in merged)


def test_the_probe_computes_what_the_model_does(tmp_path: Path) -> None:
    """The block-by-block probe against transformers' own forward pass."""
    out = merge_checkpoint(PRETRAIN, tmp_path / "out")
    checkpoint = Checkpoint.open(out)
    logits = probe_logits(checkpoint, checkpoint.config.vocab_size)
    model = VoRAForCausalLM.from_pretrained(out).eval()
    random = torch.Generator().manual_seed(0)
    pixels = torch.randn(16, model.config.patch_dim, generator=random)
    ids = torch.randint(0, model.config.vocab_size, (9,), generator=random)
    places = torch.full((16,), model.config.image_token_id)
    with torch.no_grad():
        whole = model(
            input_ids=torch.cat([ids[:4], places, ids[4:]])[None],
            pixel_values=pixels,
            image_grid_hw=torch.tensor([[4, 4]]),
        ).logits[0]
    torch.testing.assert_close(logits, whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_merge_is_verified(tmp_path: Path, dtype: torch.dtype | None) -> None:
    out = merge_checkpoint(PRETRAIN, tmp_path / "out", dtype=dtype, verify=True)
    assert verify_merge(Checkpoint.open(PRETRAIN), out) < (1e-5 if dtype is None else 0.05)


def test_a_wrong_merge_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: one layer's factors left out."""

    merged = Checkpoint.tensors

    def forgetful(checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in merged(checkpoint):
            forgotten = name == "llm.model.layers.1.mlp.up_proj.weight"
            yield name, checkpoint.tensor(name) if forgotten else tensor

    monkeypatch.setattr(Checkpoint, "tensors", forgetful)
    with pytest.raises(CheckpointError, match="disagree on a probe"):
        merge_checkpoint(PRETRAIN, tmp_path / "out", verify=True)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    out = merge_checkpoint(PRETRAIN, tmp_path / "out")
    before = (out / "model.safetensors").stat().st_ino
    with pytest.raises(CheckpointError, match="exists already"):
        merge_checkpoint(PRETRAIN, out)
    assert (out / "model.safetensors").stat().st_ino == before
    merge_checkpoint(PRETRAIN, out, overwrite=True)
    assert (out / "model.safetensors").stat().st_ino != before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


FULL = """
import resource, signal, sys
from pathlib import Path
from model_plugin import CheckpointError
from model_plugin.export import merge_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    merge_checkpoint(sys.argv[1], sys.argv[2], overwrite=True)
except CheckpointError as error:
    print(error)
"""


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    """No file may grow beyond 200 kB, which the weights exceed: the write fails half-way."""
    assert resource.RLIMIT_FSIZE is not None
    out = tmp_path / "out"
    merge_checkpoint(PRETRAIN, out)
    kept = (out / "model.safetensors").read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(PRETRAIN), str(out)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "could not be written: File too large." in done.stdout, done.stderr[-2000:]
    assert (out / "model.safetensors").read_bytes() == kept
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
