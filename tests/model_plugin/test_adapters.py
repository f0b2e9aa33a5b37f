"""Vision adapters as files: what is exported is what was trained, and merges to the same model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from model_plugin import CheckpointError, ConfigError
from model_plugin.adapted import AdaptedCheckpoint
from model_plugin.adapter_export import export_adapter, export_llm, truncate
from model_plugin.checkpoint import Checkpoint
from model_plugin.export import merge_checkpoint
from model_plugin.verify import compare_probes
from tests.checkpoints import FIXTURES, LLM, write_checkpoint
from vora_core.adapter import AdapterHeader, kernel_rank, require_kernel_rank
from vora_core.identity import llm_digest

RANK = 8


def write_run(folder: Path, llm: LLM = "qwen2", **settings: object) -> Path:
    """A pretraining checkpoint of this project: LoRA on two blocks, no extra biases."""
    return write_checkpoint(
        folder, llm=llm, layout="pretrain", style="ours", biases=False, rank=RANK, **settings
    )  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "checkpoint")


@pytest.fixture(scope="module")
def llm(run: Path) -> Path:
    return export_llm(run, run.parent / "llm")


@pytest.fixture(scope="module")
def adapter(run: Path) -> Path:
    return export_adapter(run, run.parent / "adapter", base_name="tiny").folder


@pytest.mark.parametrize("family", ["qwen2", "llama", "qwen3"])
def test_the_llm_alone_is_what_transformers_loads(tmp_path: Path, family: LLM) -> None:
    source = write_run(tmp_path / "run", family)
    out = export_llm(source, tmp_path / "llm")
    model, found = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert model.config.model_type == family
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    stored = load_file(source / "model.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, stored[f"llm.{name}"]), name


def test_merging_an_adapter_gives_what_merging_its_run_gives(
    tmp_path: Path, run: Path, llm: Path, adapter: Path
) -> None:
    whole = merge_checkpoint(run, tmp_path / "whole")
    parts = merge_checkpoint(adapter, tmp_path / "parts", base=llm, verify=True)
    one, two = load_file(whole / "model.safetensors"), load_file(parts / "model.safetensors")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    for file in ("preprocessor_config.json", "chat_template.jinja", "generation_config.json"):
        assert (whole / file).read_text() == (parts / file).read_text(), file
    first, second = (json.loads((f / "config.json").read_text()) for f in (whole, parts))
    assert {k for k in first if first[k] != second.get(k)} <= {
        "aux_vision", "skip_aux_cls", "reuse_aux_vision_embedding_layers"
    }  # fmt: skip


def test_peft_loads_the_factors(run: Path, llm: Path, adapter: Path) -> None:
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(llm)
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    wanted = dict(Checkpoint.open(run).tensors())
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor, wanted[f"llm.{name}"], atol=1e-5, rtol=1e-5)


def test_the_identity_is_that_of_the_values(tmp_path: Path, run: Path, llm: Path) -> None:
    """The same for every layout and dtype that holds the same values; another for one more bit."""
    config = json.loads((llm / "config.json").read_text())
    of_run = json.loads((run / "config.json").read_text())
    assert llm_digest(llm, config) == llm_digest(run, of_run)
    half = write_run(tmp_path / "half", dtype=torch.bfloat16)
    wide = export_llm(half, tmp_path / "wide")
    tensors = load_file(wide / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    before = llm_digest(wide, config)
    save_file({n: t.float() for n, t in tensors.items()}, wide / "model.safetensors")
    assert llm_digest(wide, config) == before != llm_digest(llm, config)
    changed = {n: t.float() for n, t in tensors.items()}
    changed["model.norm.weight"][3] += 1e-7
    save_file(changed, wide / "model.safetensors")
    assert llm_digest(wide, config) != before


def test_another_llm_is_refused(tmp_path: Path, adapter: Path) -> None:
    other = export_llm(write_run(tmp_path / "run", seed=1), tmp_path / "llm")
    with pytest.raises(CheckpointError, match=r"trained on another LLM than .*names tiny"):
        merge_checkpoint(adapter, tmp_path / "out", base=other)
    with pytest.raises(ConfigError, match="name the LLM that it was trained on"):
        merge_checkpoint(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rank", [1, 5])
def test_truncation_is_the_closest_of_its_rank(rank: int) -> None:
    """Against the singular value decomposition of the whole update."""
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(7, 30, generator=random), torch.randn(20, 7, generator=random)
    new_a, new_b, kept, whole = truncate(a, b, rank)
    u, values, v = torch.linalg.svd((b @ a).double(), full_matrices=False)
    best = (u[:, :rank] * values[:rank]) @ v[:rank]
    torch.testing.assert_close((new_b @ new_a).double(), best, atol=1e-4, rtol=1e-4)
    assert new_a.shape == (rank, 30)
    assert new_b.shape == (20, rank)
    assert kept == pytest.approx(float(values[:rank].square().sum()))
    assert whole == pytest.approx(float(values.square().sum()))


def test_truncation_says_what_it_loses(tmp_path: Path, run: Path, llm: Path, adapter: Path) -> None:
    """Less the more is kept, and as much as the probe finds; from the run and from the adapter."""
    made = {rank: export_adapter(run, tmp_path / f"{rank}", rank=rank) for rank in (1, 4, 7)}
    losses = [made[rank].difference or 0 for rank in (1, 4, 7)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] > 0.01
    energies = [made[rank].energy for rank in (1, 4, 7)]
    assert energies == sorted(energies)
    assert made[4].least_energy <= made[4].energy < 1
    assert AdapterHeader.open(made[4].folder).rank == 4
    pair = [AdaptedCheckpoint(llm, folder) for folder in (adapter, made[4].folder)]
    assert compare_probes(*pair) == pytest.approx(made[4].difference, rel=1e-3)
    again = export_adapter(adapter, tmp_path / "again", base=llm, rank=4)
    assert again.difference == pytest.approx(made[4].difference, rel=1e-3)
    with pytest.raises(ConfigError, match="must be from 1 to 7"):
        export_adapter(run, tmp_path / "same", rank=RANK)


def test_what_an_adapter_cannot_carry_is_refused(tmp_path: Path) -> None:
    """Each sentence names the way out, and nothing is left behind."""
    biased = FIXTURES / "pretrain"
    merged = FIXTURES / "merged"
    causal = write_run(tmp_path / "causal", config={"vision_attention_mask": "default"})
    for source, said in ((biased, "biases .* Merge it"), (merged, "merged"), (causal, "causally")):
        with pytest.raises(CheckpointError, match=said):
            export_adapter(source, tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["factor", "embedder", "shape", "format", "alpha"])
def test_a_damaged_adapter_is_named(tmp_path: Path, llm: Path, adapter: Path, damage: str) -> None:
    copy = tmp_path / "adapter"
    copy.mkdir()
    for file in adapter.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    said = {
        "factor": "lacks its other half",
        "embedder": "missing",
        "shape": r"is \[8, 63\], but the base LLM calls for \[8, 64\]",
        "format": "format 2",
        "alpha": "lora_alpha",
    }[damage]
    factors = load_file(copy / "adapter_model.safetensors")
    name = next(n for n in factors if n.endswith("q_proj.lora_A.weight"))
    if damage == "factor":
        del factors[name]
    elif damage == "shape":
        factors[name] = factors[name][:, :-1].contiguous()
    elif damage == "embedder":
        tensors = load_file(copy / "embedder.safetensors")
        tensors.popitem()
        save_file(tensors, copy / "embedder.safetensors")
    else:
        file = copy / ("adapter_config.json" if damage == "alpha" else "vision_adapter.json")
        changed = {"lora_alpha": 1} if damage == "alpha" else {"format": 2}
        file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    save_file(factors, copy / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=said):
        AdaptedCheckpoint(llm, copy).check()


def test_kernel_ranks(adapter: Path) -> None:
    assert [kernel_rank(r) for r in (1, 8, 9, 300, 512)] == [8, 8, 16, 320, 512]
    header = AdapterHeader.open(adapter)
    require_kernel_rank(header)
    with pytest.raises(ConfigError, match=r"rank 8; .* up to 4\. Truncate it .* or merge it"):
        require_kernel_rank(header, 4)
