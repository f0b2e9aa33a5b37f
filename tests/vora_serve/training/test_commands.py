"""The commands: recipes, dry runs, one clear error before any weights load, and whole runs."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from model_plugin import ConfigError, VoRAError
from tests.vora_serve.training import bases, files, world
from vora_serve.cli import main
from vora_serve.training import run
from vora_serve.training.plots import plot_run
from vora_serve.training.recipe import read_recipe
from vora_serve.training.run_recipe import FinetuneRun, MergeRun, PretrainRun, find_recipe

COMMAND = [sys.executable, "-m", "vora_serve"]
SHIPPED = sorted(find_recipe("pretrain_i8m").parent.glob("*.yaml"))


def metrics(folder: Path, stage: str = "pretrain") -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, lines) if line["stage"] == stage]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_recipes_are_valid(file: Path) -> None:
    kind = FinetuneRun if "finetune" in file.stem else PretrainRun
    recipe = read_recipe(kind, file, [])
    assert recipe.run == f"runs/{file.stem}"
    assert recipe.optimisation.batch_size % recipe.data.shards == 0
    assert file.stem.startswith("small_") or (file.with_name(f"small_{file.name}")).is_file()


def test_a_dry_run_of_the_papers_recipe_needs_nothing_but_the_recipe() -> None:
    recipe = read_recipe(PretrainRun, find_recipe("pretrain_i30m_t6m"), [])
    text = run.describe(recipe, processes=64, tflops=400)
    lora = 24 * 1024 * (2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18944))
    assert f"{lora:,}  trained" in text
    assert "7,615,616,512  frozen" in text
    assert "36,800,000 in all" in text
    assert "not looked at" in text


def test_overrides_and_bases(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("a: {b: 1, c: [1, 2]}\nd: 4\n")
    (tmp_path / "child.yaml").write_text("base: base.yaml\na: {b: 3}\n")
    from pydantic import BaseModel

    class Loose(BaseModel, extra="allow"):
        pass

    read = read_recipe(Loose, tmp_path / "child.yaml", ["a.c.1=7", "e.f=[x]"])
    assert read.model_dump() == {"a": {"b": 3, "c": [1, 7]}, "d": 4, "e": {"f": ["x"]}}
    (tmp_path / "loop.yaml").write_text("base: loop.yaml")
    for name, overrides, sentence in (
        ("loop.yaml", [], "refers back to it"),
        ("child.yaml", ["d"], "key=value"),
        ("child.yaml", ["d.x=1"], "has no keys"),
        ("child.yaml", ["d={"], "not valid YAML"),
        ("gone.yaml", [], "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            read_recipe(Loose, tmp_path / name, overrides)


WRONG = [
    (["lora_rnk=4"], "no key lora_rnk; did you mean lora_rank"),
    (["optimisation.steps=0"], "optimisation.steps"),
    (["optimisation.batch_size=3"], "multiple of"),
    (["model.path=/nowhere/llm"], "The LLM, /nowhere/llm, cannot be loaded"),
    (["teacher.path=/nowhere/vit"], "The teacher, /nowhere/vit, cannot be loaded"),
    (["teacher.path=DEEP"], "teacher has 5 blocks, more than the LLM's 3"),
    (["teacher.path=LLM"], "is a qwen2; known are AIMv2"),
    (["model.path=TEACHER"], "VoRA runs with one of"),
    (["teacher=null"], "there is no teacher"),
    (["n_vit=9"], "asked for 9 blocks"),
    (["images.image_size=57"], "not a multiple of 14"),
    (["images.image_size=70"], "images are 56 pixels a side"),
    (["images.patch_size=8"], "patches are 14 pixels a side"),
    (["images.resolution=native"], "native is for fine-tuning"),
    (["max_length=10"], "leaves no room"),
    (["data.shards=3"], "multiple of data.shards"),
    (["optimisation.workers=5"], "must not exceed the shards"),
    (["data.sources.0.files=[/nowhere/*.jsonl]"], "no data file /nowhere"),
    (["data.sources.0.image_dir=/nowhere"], "no folder of images"),
    (["data.sources.0.files=[EMPTY]"], "an answer is empty"),
    (["data.sources.0.files=[NOIMAGE]"], "holds no image"),
    (["data.sources.0.files=[NOTHING]"], "hold no samples"),
    (["data.sources.0.files=[UNPLACED]"], "places 1 images, but the row holds 0"),
]


@pytest.fixture(scope="module")
def wrong_parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("wrong")
    question, answer = files.turns(0)
    rows = {
        "EMPTY": {"conversations": [question, answer | {"value": ""}]},
        "NOIMAGE": {"frames": [None], "conversations": [question, answer]},
        "UNPLACED": {"conversations": [question | {"value": "<image>?"}, answer]},
        "NOTHING": None,
    }
    parts: dict[str, Any] = {"recipe": bases.pretrain_recipe(folder)}
    for name, row in rows.items():
        file = folder / f"{name}.jsonl"
        file.write_text(json.dumps(row) + "\n" if row else "")
        parts[name] = str(file)
    parts["DEEP"] = str(bases.save_teacher(folder / "deep", layers=5))
    parts["LLM"], parts["TEACHER"] = str(folder / "llm"), str(folder / "teacher")
    return parts


@pytest.mark.parametrize(("overrides", "sentence"), WRONG, ids=lambda v: str(v)[:40])
def test_what_is_wrong_is_said_before_weights_are_read(
    wrong_parts: dict[str, Any],
    overrides: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    for name in ("load_model", "load_teacher"):
        monkeypatch.setattr(run, name, never)
    for name, value in wrong_parts.items():
        overrides = [o.replace(name, str(value)) if name.isupper() else o for o in overrides]
    with pytest.raises(VoRAError, match="(?i)" + sentence):
        run.run_pretrain(read_recipe(PretrainRun, wrong_parts["recipe"], overrides))
    if "data" not in overrides[0] or "shards" in overrides[0]:
        with pytest.raises(VoRAError, match="(?i)" + sentence):
            run.describe(read_recipe(PretrainRun, wrong_parts["recipe"], overrides), 1, 1.0)


def test_from_recipes_to_a_fine_tuned_checkpoint(tmp_path: Path) -> None:
    recipe = read_recipe(PretrainRun, bases.pretrain_recipe(tmp_path), ["optimisation.steps=4"])
    out = run.run_pretrain(recipe)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "data.jsonl" in card
    assert "| lm | " in card
    assert yaml.safe_load((out / "recipe.yaml").read_text())["lora_rank"] == 8
    merged = tmp_path / "merged"
    said = list(run.run_merge(MergeRun(source=str(out), out=str(merged))))
    assert said[0] == "Merged and unmerged model agree on a probe."
    tuned = FinetuneRun.model_validate(
        {
            "model": {"path": str(merged)},
            "images": {"resolution": "native", "image_size": 56, "max_pixels": 20000},
            "data": {
                "sources": [{"files": [str(tmp_path / "data" / "data.jsonl")]}],
                "shuffle_buffer": 8,
                "pack": True,
                "pack_window": 8,
            },
            "held_out": {"sources": [{"files": [str(tmp_path / "text.jsonl")]}], "every": 2},
            "optimisation": {
                "steps": 3,
                "batch_size": 2,
                "lr": 1e-3,
                "log_every": 1,
                "tensorboard": True,
            },
            "max_length": 160,
            "run": str(tmp_path / "tuning"),
            "out": str(tmp_path / "tuned"),
        }
    )
    final = run.run_finetune(tuned)
    before = load_file(merged / "model.safetensors")
    after = load_file(final / "model.safetensors")
    unchanged = [n for n, t in before.items() if (t.float() - after[n].float()).abs().max() == 0]
    assert not unchanged, "fine-tuning should freeze nothing"
    assert json.loads((final / "preprocessor_config.json").read_text())["resolution"] == "native"
    held_out = metrics(tmp_path / "tuning", "finetune, held out")
    assert [line["step"] for line in held_out] == [2, 3]
    assert list((tmp_path / "tuning" / "tensorboard").rglob("events.*"))
    plot_run(tmp_path / "tuning", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def start(recipe: Path, *overrides: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [*COMMAND, "pretrain", "--config", str(recipe), *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    file = bases.pretrain_recipe(tmp_path)
    settings = ["optimisation.steps=60", "optimisation.save_every=5", "optimisation.workers=2"]
    whole = [*settings, f"run={tmp_path / 'whole'}", f"out={tmp_path / 'a'}"]
    run.run_pretrain(read_recipe(PretrainRun, file, whole))

    cut = tmp_path / "cut"
    overrides = [*settings, f"run={cut}", f"out={tmp_path / 'b'}"]
    process = start(file, *overrides)
    deadline = time.monotonic() + 400
    while len(metrics(cut) if (cut / "metrics.jsonl").exists() else []) < 12:
        assert process.poll() is None, process.communicate()[1][-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    assert (cut / "state" / "state.pt").exists()
    assert not (tmp_path / "b").exists()
    for changed in ("optimisation.lr=1e-5", "data.shuffle_buffer=9"):
        with pytest.raises(VoRAError, match="saved under another recipe"):
            run.run_pretrain(read_recipe(PretrainRun, file, [*overrides, changed]))
    run.run_pretrain(read_recipe(PretrainRun, file, overrides))
    for key in ("lm", "distill", "grad_norm"):
        assert [line[key] for line in metrics(cut)] == [
            line[key] for line in metrics(tmp_path / "whole")
        ], key
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in "ab")
    assert all((one[name] == two[name]).all() for name in one)


def test_a_state_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    """From step 5 on no file may grow beyond 60 kB, which a state exceeds."""
    file = bases.pretrain_recipe(tmp_path)
    code = """
import resource, signal, sys
from vora_serve.training import run, state
from vora_serve.training.recipe import read_recipe
from vora_serve.training.run_recipe import PretrainRun
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
save = state.RunState.save
def limited(self, step, shards):
    if step >= 4:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
    save(self, step, shards)
state.RunState.save = limited
try:
    run.run_pretrain(read_recipe(PretrainRun, Path(sys.argv[1]), []))
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert "CheckpointError The training state could not be saved" in done.stdout, done.stderr
    import torch

    kept = torch.load(tmp_path / "run" / "state" / "state.pt", weights_only=False)
    assert kept["step"] == 2
    assert sorted(p.name for p in (tmp_path / "run" / "state").iterdir()) == ["state.pt"]
    run.run_pretrain(read_recipe(PretrainRun, file, []))
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, 9))


def test_broken_samples_are_counted_and_named_and_stop_a_run(tmp_path: Path) -> None:
    file = bases.pretrain_recipe(tmp_path)
    data = tmp_path / "data" / "data.jsonl"
    lines = data.read_text().splitlines()
    data.write_text("\n".join(lines[:20] + ['{"id": "broken"}'] * 4 + lines[20:]))
    recipe = read_recipe(PretrainRun, file, ["optimisation.steps=16"])
    run.run_pretrain(recipe)
    assert metrics(tmp_path / "run")[-1]["skipped"] >= 4
    named = (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()
    assert json.loads(named[0]) == {
        "sample": f"{data}:{json.loads(named[0])['sample'].rpartition(':')[2]}",
        "kind": "conversation",
        "reason": "The row has no conversation (its fields: id).",
    }
    overrides = ["optimisation.steps=16", "data.max_skipped=2", f"run={tmp_path / 'other'}"]
    overrides += [f"out={tmp_path / 'other-out'}", "optimisation.workers=1"]
    with pytest.raises(VoRAError, match="more than max_skipped") as raised:
        run.run_pretrain(read_recipe(PretrainRun, file, overrides))
    assert "Traceback" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["pretrain", "--config", "no_such_recipe"], "There is no recipe no_such_recipe"),
        (["finetune", "--config", "recipe.yaml"], "not valid YAML"),
        (["merge", f"source={world.RELEASED / 'merged' / 'x'}", "out=y"], "x"),
        (["plot", "."], "has no metrics.jsonl"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_usage_errors_have_exit_code_2_and_no_traceback(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process, which has torch loaded; tests/vora_serve/test_cli.py starts real ones."""
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text("{")
    monkeypatch.setattr(sys, "argv", ["vora-serve", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    # On a machine without GPUs, accelerate would start several processes through MPI alone.
    "accelerate": [
        "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
    ],
}  # fmt: skip


def launched(
    recipe: Path, *overrides: str, launcher: str = "torchrun", processes: int = 2
) -> subprocess.CompletedProcess[str]:
    """A pretraining by several processes."""
    launch = [str(processes) if part == "2" else part for part in LAUNCHERS[launcher]]
    command = [sys.executable, "-m", *launch, "-m", "vora_serve", "pretrain"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [*command, "--config", str(recipe), *overrides],
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
        env=environment,
    )


def needs(sharding: str) -> None:
    """Skip where a library that only this way of sharding needs is not installed."""
    if sharding == "zero1":
        pytest.importorskip("deepspeed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "sharding"),
    [("torchrun", "none"), ("torchrun", "fsdp2"), ("torchrun", "zero1"), ("accelerate", "none")],
)
def test_two_processes_give_the_losses_of_one(tmp_path: Path, launcher: str, sharding: str) -> None:
    needs(sharding)
    file = bases.pretrain_recipe(tmp_path)
    run.run_pretrain(read_recipe(PretrainRun, file, [f"out={tmp_path / 'one'}"]))
    overrides = [f"optimisation.sharding={sharding}", f"run={tmp_path / 'two'}"]
    done = launched(file, *overrides, f"out={tmp_path / 'both'}", launcher=launcher)
    assert done.returncode == 0, done.stderr[-3000:]
    for key in ("lm", "aux_0", "aux_1", "grad_norm"):
        one = [line[key] for line in metrics(tmp_path / "run")]
        two = [line[key] for line in metrics(tmp_path / "two")]
        assert one == pytest.approx(two, abs=2e-4), key
    weights = [load_file(tmp_path / n / "model.safetensors") for n in ("one", "both")]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert (tensor - weights[1][name]).abs().max() < 2e-3, name


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["fsdp2", "zero1"])
def test_a_sharded_run_that_was_killed_goes_on(tmp_path: Path, sharding: str) -> None:
    needs(sharding)
    file = bases.pretrain_recipe(tmp_path)
    settings = [f"optimisation.sharding={sharding}", "optimisation.steps=12"]
    settings += ["optimisation.save_every=4", "data.max_skipped=0"]
    whole = launched(file, *settings, f"run={tmp_path / 'whole'}", f"out={tmp_path / 'a'}")
    assert whole.returncode == 0, whole.stderr[-3000:]
    # A sample's file goes away after it was looked at: the run stops in the middle.
    wall = [f"run={tmp_path / 'cut'}", f"out={tmp_path / 'b'}"]
    data = tmp_path / "data" / "data.jsonl"
    kept = data.read_text()
    lines = kept.splitlines()
    data.write_text("\n".join([*lines[:-1], "broken"]) + "\n")
    stopped = launched(file, *settings, *wall)
    assert stopped.returncode != 0
    assert list((tmp_path / "cut" / "state").glob("shards-*")), "a state was written"
    data.write_text(kept)
    going_on = launched(file, *settings, *wall)
    assert going_on.returncode == 0, going_on.stderr[-3000:]
    for key in ("lm", "distill"):
        one = [line[key] for line in metrics(tmp_path / "whole")]
        assert one == [line[key] for line in metrics(tmp_path / "cut")], key
    assert math.isfinite(metrics(tmp_path / "cut")[-1]["lm"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_resumes_with_another_number_of_processes(tmp_path: Path) -> None:
    """Two begin, one resumes: the losses are those of an undisturbed run."""
    file = bases.pretrain_recipe(tmp_path)
    settings = ["optimisation.steps=12", "optimisation.save_every=4", "data.max_skipped=0"]
    whole = launched(file, *settings, f"run={tmp_path / 'whole'}", f"out={tmp_path / 'a'}")
    assert whole.returncode == 0, whole.stderr[-3000:]
    wall = [f"run={tmp_path / 'cut'}", f"out={tmp_path / 'b'}"]
    data = tmp_path / "data" / "data.jsonl"
    kept = data.read_text()
    data.write_text("\n".join([*kept.splitlines()[:-1], "broken"]) + "\n")
    assert launched(file, *settings, *wall).returncode != 0
    before = len(metrics(tmp_path / "cut"))
    data.write_text(kept)
    alone = launched(file, "optimisation.sharding=fsdp2", *settings, *wall, processes=1)
    assert "was saved with optimisation.sharding none" in alone.stderr
    assert len(metrics(tmp_path / "cut")) == before, "refused before work started"
    resumed = launched(file, *settings, *wall, processes=1)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert 0 < before < len(metrics(tmp_path / "cut"))
    for key in ("lm", "distill", "grad_norm"):
        one = [line[key] for line in metrics(tmp_path / "whole")]
        assert one == pytest.approx([line[key] for line in metrics(tmp_path / "cut")], abs=2e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's compiler about itself: as errors they end it
def test_compiled_blocks_give_the_same_losses(tmp_path: Path) -> None:
    from torch._dynamo.utils import counters

    file = bases.pretrain_recipe(tmp_path)
    losses = []
    for compiled in (False, True):
        counters.clear()
        place = tmp_path / str(compiled)
        settings = [f"optimisation.compile={compiled}", f"run={place}", f"out={place}.out"]
        run.run_pretrain(read_recipe(PretrainRun, file, settings))
        assert (counters["stats"]["unique_graphs"] > 0) is compiled
        losses.append(metrics(place))
    for key in ("lm", "aux_0", "aux_1", "grad_norm"):
        plain, fast = ([line[key] for line in lines] for lines in losses)
        assert plain == pytest.approx(fast, abs=2e-4), key
