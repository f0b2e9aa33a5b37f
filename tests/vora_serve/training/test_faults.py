"""What goes wrong in a run: it is skipped and counted, or stops the run with its work kept."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model_plugin import CheckpointError, ConfigError, VoRAError, VoRAForCausalLM
from model_plugin.export import export_checkpoint, merge_checkpoint
from tests.vora_serve.training import bases, world
from tests.vora_serve.training.drills import drills
from vora_serve.training import FinetuneRecipe, Optimisation, finetune, run, stages
from vora_serve.training.data import Batch
from vora_serve.training.health import Health, TrainingStopped
from vora_serve.training.parallel import Replicated
from vora_serve.training.recipe import read_recipe
from vora_serve.training.run_recipe import FinetuneRun, MergeRun, PretrainRun
from vora_serve.training.state import RunState

Forward = Callable[..., dict[str, torch.Tensor]]


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def pretrain(file: Path, *overrides: str, overwrite: bool = False) -> Path:
    return run.run_pretrain(read_recipe(PretrainRun, file, list(overrides)), overwrite=overwrite)


def spoil(monkeypatch: pytest.MonkeyPatch, when: Callable[[int], bool], how: str) -> None:
    """Make losses or gradients of some micro-batches (numbered from 0) not finite."""
    forward, count = Replicated.forward, [0]

    def spoiled(self: Replicated, batch: Batch, *, last: bool) -> dict[str, torch.Tensor]:
        losses = forward(self, batch, last=last)
        if when(count[0]):
            if how == "loss":
                losses["lm"] = losses["lm"] * math.nan
            else:  # a finite loss whose gradient is not
                losses["lm"].register_hook(lambda grad: grad * math.inf)
        count[0] += 1
        return losses

    monkeypatch.setattr(Replicated, "forward", spoiled)


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    file = bases.pretrain_recipe(tmp_path)
    spoil(monkeypatch, lambda n: n == 5, how)  # of two micro-batches, the second of step 3
    out = pretrain(file, "optimisation.save_every=0")
    found = lines(tmp_path / "run")
    assert [line.get("skipped_steps", 0) for line in found] == [0, 0, 1, 1, 1, 1, 1, 1]
    assert found[2]["lm"] is None
    assert all(math.isfinite(line["lm"]) for line in found if line["step"] != 3)
    assert all(torch.isfinite(t).all() for t in load_file(out / "model.safetensors").values())


def test_a_burst_stops_the_run_and_keeps_the_last_good_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = bases.pretrain_recipe(tmp_path)
    whole = pretrain(file, f"run={tmp_path / 'whole'}", f"out={tmp_path / 'a'}")
    with monkeypatch.context() as patch:
        spoil(patch, lambda n: n >= 8, "loss")  # from step 5 on
        with pytest.raises(TrainingStopped, match=r"3 steps .*good state is of step 4"):
            pretrain(file, "optimisation.save_every=0")
    assert not (tmp_path / "pretrained").exists()
    out = pretrain(file)
    one, two = (load_file(folder / "model.safetensors") for folder in (whole, out))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_scattered_bad_steps_and_spikes() -> None:
    health = Health(limit=3)
    for step in range(60):
        health.count(step, 2.0 + 0.01 * (step % 3), 1.0, applied=True)
    assert (health.spikes, health.skipped) == (0, 0)
    health.count(60, 9.0, 1.0, applied=True)
    assert health.spikes == 1
    for step in range(14):
        health.count(step, math.nan, math.nan, applied=False)
        assert not health.is_burst
        health.count(step, 2.0, 1.0, applied=True)
        assert not health.is_burst
    health.count(0, math.nan, math.nan, applied=False)
    assert health.is_burst, "every other step of the last thirty"


def test_weights_that_an_update_spoils_are_neither_saved_nor_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = bases.pretrain_recipe(tmp_path)
    step, count = torch.optim.AdamW.step, [0]

    def spoiled(self: torch.optim.AdamW, *args: Any) -> Any:
        count[0] += 1
        done = step(self, *args)
        if count[0] == 6:
            with torch.no_grad():
                self.param_groups[0]["params"][0].view(-1)[0] = math.inf
        return done

    monkeypatch.setattr(torch.optim.AdamW, "step", spoiled)
    with pytest.raises(TrainingStopped, match=r"update of step 6.*last good state is of step 4"):
        pretrain(file)
    assert not (tmp_path / "pretrained").exists()


def test_exports_and_merges_refuse_what_is_not_finite(tmp_path: Path) -> None:
    out = pretrain(bases.pretrain_recipe(tmp_path), "optimisation.steps=1")
    weights = load_file(out / "model.safetensors")
    name = next(name for name in weights if name.endswith("lora_B.weight"))
    weights[name][0, 0] = math.nan
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="values that are not finite"):
        merge_checkpoint(out, tmp_path / "merged")
    model = world.model()
    with torch.no_grad():
        model.llm.model.norm.weight[0] = math.inf
    with pytest.raises(CheckpointError, match=r"llm\.model\.norm\.weight holds values that are"):
        export_checkpoint(tmp_path / "x", model.config, iter(model.state_dict().items()))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("save_every", [0, 4])
def test_a_failed_export_keeps_what_was_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_every: int
) -> None:
    file = bases.pretrain_recipe(tmp_path)
    settings = ["optimisation.steps=5", f"optimisation.save_every={save_every}"]

    def full(*_: object, **__: object) -> None:
        raise CheckpointError("out could not be written: No space left on device.")

    with monkeypatch.context() as patch:
        patch.setattr(stages, "export_checkpoint", full)
        with pytest.raises(CheckpointError, match=r"No space left.*good state is of step 5, in"):
            pretrain(file, *settings)
    assert torch.load(tmp_path / "run/state/state.pt", weights_only=False)["step"] == 5
    before = lines(tmp_path / "run")
    out = pretrain(file, *settings)
    assert (out / "model.safetensors").is_file()
    assert lines(tmp_path / "run") == before, "nothing is trained again"
    assert not (tmp_path / "run/state").exists()


def test_sigterm_saves_a_state_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = bases.pretrain_recipe(tmp_path)
    whole = pretrain(file, f"run={tmp_path / 'whole'}", f"out={tmp_path / 'a'}")
    spoil_at, count, forward = 5, [0], Replicated.forward

    def killed(self: Replicated, batch: Batch, *, last: bool) -> dict[str, torch.Tensor]:
        count[0] += 1
        if count[0] == spoil_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, batch, last=last)

    assert threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(Replicated, "forward", killed)
        with pytest.raises(TrainingStopped, match=r"SIGTERM.*last good state is of step 3, in"):
            pretrain(file, "optimisation.save_every=0")
    assert signal.getsignal(signal.SIGTERM) is handler
    out = pretrain(file, "optimisation.save_every=0")
    one, two = (load_file(folder / "model.safetensors") for folder in (whole, out))
    assert all(torch.equal(one[name], two[name]) for name in one)


def interrupted(file: Path, monkeypatch: pytest.MonkeyPatch, after: int, *overrides: str) -> None:
    """Run until a disk error in the step after ``after``."""
    forward, count = Replicated.forward, [0]

    def failing(self: Replicated, batch: Batch, *, last: bool) -> dict[str, torch.Tensor]:
        count[0] += 1
        if count[0] > 2 * after:
            raise OSError("Input/output error")
        return forward(self, batch, last=last)

    with monkeypatch.context() as patch:
        patch.setattr(Replicated, "forward", failing)
        with pytest.raises(TrainingStopped, match=r"Input/output error\. The last good state is"):
            pretrain(file, *overrides)


def test_a_damaged_state_gives_way_to_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = bases.pretrain_recipe(tmp_path)
    whole = pretrain(file, f"run={tmp_path / 'whole'}", f"out={tmp_path / 'a'}")
    interrupted(file, monkeypatch, 5)
    state = tmp_path / "run" / "state" / "state.pt"
    contents = bytearray(state.read_bytes())
    contents[len(contents) // 2] ^= 0xFF  # in a tensor: torch itself would not notice
    state.write_bytes(contents)
    out = pretrain(file)
    one, two = (load_file(folder / "model.safetensors") for folder in (whole, out))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_damaged_states_alone_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = bases.pretrain_recipe(tmp_path)
    interrupted(file, monkeypatch, 5)
    for state in (tmp_path / "run" / "state").glob("*.pt"):
        state.write_bytes(state.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"No good training state is left.*start over"):
        pretrain(file)


REFUSED = [
    ("lora_rank=16", "lora_rank was 8, is 16"),
    ("attention=causal", "attention was not set, is causal"),
    ("distillation.mode=last-block", "distillation.mode was block-wise, is last-block"),
    ("distillation.alignment=released", "alignment was paper, is released"),
    ("images.mean=[0.5, 0.5, 0.5]", "images.mean was not set, is"),
    ("max_length=170", "max_length was 160, is 170"),
    ("data.shuffle_buffer=9", "data.shuffle_buffer was 8, is 9"),
    ("optimisation.seed=3", "optimisation.seed was 0, is 3"),
    ("model.path=OTHER", "the base model is another"),
    ("teacher.path=OTHER", "the teacher is another"),
    ("model.chat_template=OTHER", "the chat template is another"),
    ("optimisation.sharding=fsdp2", "cannot become fsdp2"),
]
ALLOWED = [
    "optimisation.steps=10",
    "optimisation.workers=1",
    "optimisation.log_every=2",
    "optimisation.save_every=3",
    "data.max_skipped=5000",
    "model.path=MOVED",
]


def test_what_changes_the_result_is_refused_and_what_does_not_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = bases.pretrain_recipe(tmp_path)
    interrupted(file, monkeypatch, 5)
    others = {
        "model.path": bases.save_llm(tmp_path / "other-llm"),
        "teacher.path": bases.save_teacher(tmp_path / "other-teacher"),
        "model.chat_template": tmp_path / "other.jinja",
    }
    template = world.processor().chat_template
    others["model.chat_template"].write_text(template + "{# another #}")
    for key in ("model.path", "teacher.path"):
        weights = load_file(others[key] / "model.safetensors")
        for tensor in weights.values():
            tensor += 0.01
        save_file(weights, others[key] / "model.safetensors", metadata={"format": "pt"})
    for change, sentence in REFUSED:
        key = change.partition("=")[0]
        changed = change.replace("OTHER", str(others.get(key)))
        with pytest.raises(CheckpointError, match=sentence):
            pretrain(file, changed)
    moved = (tmp_path / "llm").rename(tmp_path / "moved")
    pretrain(file, *(change.replace("MOVED", str(moved)) for change in ALLOWED))
    assert lines(tmp_path / "run")[-1]["step"] == 10


def test_steps_of_a_cosine_are_part_of_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = bases.pretrain_recipe(tmp_path)
    interrupted(file, monkeypatch, 5, "optimisation.schedule=cosine")
    with pytest.raises(CheckpointError, match=r"optimisation.steps was 8, is 9"):
        pretrain(file, "optimisation.schedule=cosine", "optimisation.steps=9")


@pytest.mark.parametrize(
    ("part", "change", "sentence"),
    [
        ("teacher", "missing", "The teacher, .* 1 missing"),
        ("teacher", "unknown", "The teacher, .* 1 unknown"),
        ("teacher", "shape", "The teacher, .* 1 of another shape"),
        ("llm", "missing", "The LLM, .* 1 missing"),
        ("llm", "unknown", "The LLM, .* 1 unknown"),
        ("llm", "shape", "The LLM, .* 1 of another shape"),
        ("llm", "cut", "The LLM, .* cannot be loaded"),
    ],
)
def test_every_tensor_is_accounted_for(
    tmp_path: Path, part: str, change: str, sentence: str
) -> None:
    file = bases.pretrain_recipe(tmp_path)
    weights_file = tmp_path / part / "model.safetensors"
    weights = load_file(weights_file)
    name = next(name for name in weights if ".0." in name and name.endswith("proj.weight"))
    if change == "missing":
        del weights[name]
    elif change == "unknown":
        weights[name.replace(".0.", ".7.")] = weights[name].clone()
    else:
        weights[name] = weights[name][:-1].clone()
    save_file(weights, weights_file, metadata={"format": "pt"})
    if change == "cut":
        weights_file.write_bytes(weights_file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=sentence):
        pretrain(file)


def test_a_run_without_a_padding_token(tmp_path: Path) -> None:
    file = bases.pretrain_recipe(tmp_path)
    config = tmp_path / "llm" / "tokenizer_config.json"
    contents = json.loads(config.read_text())
    config.write_text(json.dumps(contents | {"pad_token": None}))
    out = pretrain(file, "optimisation.steps=1")
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["pad_token_id"] == generation["eos_token_id"]


def test_bfloat16_weights_need_bfloat16_computing(tmp_path: Path) -> None:
    file = bases.pretrain_recipe(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.dtype=bfloat16 needs optimisation.bf16=true"):
        pretrain(file, "model.dtype=bfloat16")
    pretrain(file, "model.dtype=bfloat16", "optimisation.bf16=true", "optimisation.steps=1")


def test_output_paths_are_checked_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = bases.pretrain_recipe(tmp_path)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(run, "load_model", never)
    monkeypatch.setattr(stages, "train", never)
    plain = tmp_path / "plain"
    plain.write_text("x")
    llm = tmp_path / "llm"
    for change, overwrite, sentence in (
        (f"out={llm}", False, "exists already; say --overwrite"),
        (f"out={llm}", True, "would replace the model that it is made from"),
        (f"out={tmp_path}", True, "would replace"),
        (f"out={plain}", True, "is a file"),
        (f"out={plain}/below/out", False, "cannot be written to"),
        (f"run={plain}/below", False, "cannot be written to"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            pretrain(file, change, overwrite=overwrite)
    with pytest.raises(ConfigError, match="exists already"):
        list(run.run_merge(MergeRun(source=str(world.RELEASED / "pretrain"), out=str(llm))))
    recipe = FinetuneRecipe(optimisation=Optimisation(steps=1, batch_size=1, lr=1e-3))
    with pytest.raises(ConfigError, match="exists already"):
        finetune(world.model(), world.processor(), world.Colours(), recipe, tmp_path / "run", llm)


def test_checkpoints_on_the_way_are_kept_on_request(tmp_path: Path) -> None:
    file = bases.pretrain_recipe(tmp_path)
    out = pretrain(file, "optimisation.export_every=3", "optimisation.steps=7")
    kept = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [folder.name for folder in kept] == ["step-000003", "step-000006"]
    first, last = (load_file(f / "model.safetensors") for f in (kept[0], out))
    assert any(not torch.equal(first[name], last[name]) for name in first)
    for folder in kept:
        merge_checkpoint(folder, folder.with_suffix(".merged"), verify=True)


def test_fine_tunes_hold_their_weights_in_float32(tmp_path: Path) -> None:
    model = world.model().to(torch.bfloat16)
    before = {name: p.detach().float().clone() for name, p in model.named_parameters()}
    recipe = FinetuneRecipe(
        optimisation=Optimisation(steps=4, batch_size=4, lr=2e-5, bf16=True), max_length=200
    )
    finetune(model, world.processor(), world.Colours(), recipe, tmp_path, tmp_path / "out")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    named = dict(model.named_parameters())
    moved = sum(int((named[n].detach() != before[n]).sum()) for n in before)
    assert moved / sum(p.numel() for p in named.values()) > 0.7  # embeddings of unseen words stay
    for name in ("llm.model.norm.weight", "llm.model.layers.0.input_layernorm.weight"):
        assert (named[name].detach() != before[name]).float().mean() > 0.9, name
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.bfloat16}, "as it was given"


def test_a_vanished_data_file_stops_the_command_with_a_sentence(tmp_path: Path) -> None:
    """At the level of the command: exit code 1, no traceback, and the last good state is named."""
    file = bases.pretrain_recipe(tmp_path)
    code = """
import sys
from pathlib import Path
from vora_serve import cli
from vora_serve.training import state
recipe, save = sys.argv[1], state.RunState.save
def vanishing(self, step, shards):
    save(self, step, shards)
    for data in (Path(recipe).parent / "data" / "data.jsonl", Path(recipe).parent / "text.jsonl"):
        data.unlink(missing_ok=True)
state.RunState.save = vanishing
sys.argv = ["vora-serve", "pretrain", "--config", recipe, "optimisation.steps=500"]
cli.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode in (1, 2), done.stderr[-2000:]
    assert "The last good state is of step" in done.stderr
    assert "Traceback" not in done.stderr


def test_saves_hold_at_most_two_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []
    save = RunState.save

    def watched(self: RunState, step: int, shards: Any) -> None:
        save(self, step, shards)
        seen.append({path.name for path in self.folder.iterdir()})

    monkeypatch.setattr(RunState, "save", watched)
    pretrain(bases.pretrain_recipe(tmp_path))
    assert seen[0] == {"state.pt"}
    assert all(names == {"state.pt", "previous.pt"} for names in seen[1:])


def test_refusals_are_of_one_tree() -> None:
    assert issubclass(TrainingStopped, VoRAError)
    assert TrainingStopped.exit_code == 1


def test_a_whole_llm_can_be_pretrained(tmp_path: Path) -> None:
    """Without LoRA: everything trains, and the result is merged already."""
    file = bases.pretrain_recipe(tmp_path, trains="llm")
    out = pretrain(file, "optimisation.steps=2")
    stored, base = (
        load_file(out / "model.safetensors"),
        load_file(tmp_path / "llm/model.safetensors"),
    )
    assert not [name for name in stored if "lora" in name or "aux" in name]
    still = [n for n, t in base.items() if torch.equal(stored[f"llm.{n}"][: len(t)], t)]
    assert not still
    plain = finetune_recipe(out, tmp_path)
    run.run_finetune(plain)


def finetune_recipe(model: Path, folder: Path) -> FinetuneRun:
    return FinetuneRun.model_validate(
        {
            "model": {"path": str(model)},
            "data": {
                "sources": [{"files": [str(folder / "data" / "data.jsonl")]}],
                "shuffle_buffer": 8,
            },
            "optimisation": {"steps": 1, "batch_size": 2, "lr": 1e-3},
            "max_length": 160,
            "run": str(folder / "tuning"),
            "out": str(folder / "tuned"),
        }
    )


def test_a_fine_tunes_memory_counts_its_float32_weights(tmp_path: Path) -> None:
    out = pretrain(bases.pretrain_recipe(tmp_path, trains="llm"), "optimisation.steps=1")
    recipe = finetune_recipe(out, tmp_path).model_dump(mode="json")
    half = recipe | {"optimisation": recipe["optimisation"] | {"bf16": True}}
    half["model"]["dtype"] = "bfloat16"
    text = run.describe(FinetuneRun.model_validate(half), 1, 1.0)
    count = sum(p.numel() for p in VoRAForCausalLM.from_pretrained(out).parameters())
    mib = f"{4 * count / 2**20:,.1f} MiB"
    rows = {line.strip().rpartition("  ")[0].strip(): line for line in text.splitlines()}
    assert rows["trained weights"].endswith(mib)
    assert rows["gradients"].endswith(mib)
    assert rows["optimizer"].endswith(f"{8 * count / 2**20:,.1f} MiB")
    assert rows["bfloat16 copies"].endswith(f"{2 * count / 2**20:,.1f} MiB")


@pytest.mark.slow
@pytest.mark.timeout(3000)  # twenty starts of two processes, and nothing here depends on time
def test_ten_random_drills() -> None:
    said: list[str] = []
    drills(10, seed=int.from_bytes(os.urandom(2)), say=said.append)
    assert len(said) == 10
