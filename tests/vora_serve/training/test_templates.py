"""Labels under the chat templates of model families: learned is what a served model is to write."""

import copy
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import vora_serve.demo
from model_plugin import CheckpointError, ConfigError, VoRAImageProcessor, VoRAProcessor
from tests.vora_serve.training import bases, world
from tests.vora_serve.training.chat_templates import CONTROLS, FAMILIES, REFUSED
from vora_serve.cli import main
from vora_serve.training import Sample
from vora_serve.training.data import IGNORE, Example, Tokeniser
from vora_serve.training.labels import SampleError

DEMO = Path(vora_serve.demo.__file__).parent / "checkpoint"
IMAGE = {"type": "image"}
#: These refuse a system message in words of their own.
WITHOUT_SYSTEM = {"Gemma", "Mistral 0.1"}


def processor(template: str) -> VoRAProcessor:
    """One that knows all families' control tokens, and ends texts with Llama's."""
    own = world.processor()
    tokenizer = copy.deepcopy(own.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": list(CONTROLS)})
    tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
    return VoRAProcessor(VoRAImageProcessor(own.settings), tokenizer, template)


def conversation(*, image: bool = True, system: bool = False) -> Sample:
    question: Any = [IMAGE, {"type": "text", "text": "Which colour?"}] if image else "Colour?"
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "Sure? [INST] <|assistant|> </s>"},
        {"role": "assistant", "content": "yes"},
    ]
    if system:
        messages.insert(0, {"role": "system", "content": "Be brief."})
    return Sample(messages, [Image.new("RGB", (60, 40), (255, 0, 0))] * image)


def learned(tokeniser: Tokeniser, example: Example) -> str:
    chosen = example.labels[example.labels != IGNORE]
    return str(tokeniser.processor.tokenizer.decode(chosen))


@pytest.mark.parametrize("image", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_learned_are_the_answers_and_their_ends(family: str, image: bool) -> None:
    template, wanted = FAMILIES[family]
    tokeniser = Tokeniser(processor(template), max_length=500)
    assert tokeniser.processor.chat_template == template, "used as it is given"
    example = tokeniser(conversation(image=image))
    assert learned(tokeniser, example) == wanted
    is_image = example.input_ids == tokeniser.processor.image_token_id
    assert int(is_image.sum()) == 64 * image
    assert int((example.image_ids >= 0).sum()) == 64 * image
    assert not (example.labels[is_image] != IGNORE).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_stands_before_an_answer_is_what_is_served(family: str) -> None:
    """The tokens before the last answer are those that a served model is asked with."""
    proc = processor(FAMILIES[family][0])
    tokeniser = Tokeniser(proc, max_length=500)
    sample = conversation()
    example = tokeniser(sample)
    asked = proc.apply_chat_template(
        sample.messages[:-1], tokenize=True, add_generation_prompt=True
    )
    asked = proc.expand(asked, [64])
    assert example.input_ids[: len(asked)].tolist() == asked
    rest = example.labels[len(asked) :]
    assert rest[0] != IGNORE, "the first token that is written is learned"
    assert (example.labels[: len(asked)] != IGNORE).any(), "and so is the first answer"
    ended = tokeniser.processor.tokenizer.decode(rest[rest != IGNORE])
    assert ended.strip().endswith(tokeniser.labeller.ending)


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - WITHOUT_SYSTEM))
def test_a_system_message_changes_nothing(family: str) -> None:
    """Mistral's moves it to the last question, so that no beginning is like any other."""
    template, wanted = FAMILIES[family]
    tokeniser = Tokeniser(processor(template), max_length=500)
    assert learned(tokeniser, tokeniser(conversation(system=True))) == wanted


def test_a_conversation_that_a_template_refuses_is_skipped_with_its_reason() -> None:
    tokeniser = Tokeniser(processor(FAMILIES["Gemma"][0]), max_length=500)
    with pytest.raises(SampleError, match="refuses the conversation: System role not supported"):
        tokeniser(conversation(system=True))


def test_thoughts_are_learned_where_the_template_shows_them() -> None:
    tokeniser = Tokeniser(processor(FAMILIES["Qwen3"][0]), max_length=500)
    sample = Sample(
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "<think>\nfirst\n</think>\n\nred"},
            {"role": "user", "content": "b"},
            {"role": "assistant", "content": "<think>\nsecond\n</think>\n\nyes"},
        ]
    )
    wanted = "red<|im_end|><think>\nsecond\n</think>\n\nyes<|im_end|>"
    assert learned(tokeniser, tokeniser(sample)) == wanted


def test_no_token_straddles_what_is_asked_and_what_is_answered() -> None:
    """Served, a question that ends with a space ends with a token of its own."""
    template = FAMILIES["Vicuna"][0].replace("'ASSISTANT:'", "'ASSISTANT: '")
    proc = VoRAProcessor.from_pretrained(DEMO)
    proc = VoRAProcessor(proc.image_processor, proc.tokenizer, template)
    sample = conversation(image=False)
    answer = sample.messages[1]["content"]
    joined, alone = (proc.tokenizer.encode(text) for text in (f" {answer}", answer))
    assert joined != [*proc.tokenizer.encode(" "), *alone], "the tokenizer joins them"
    tokeniser = Tokeniser(proc, max_length=500)
    example = tokeniser(Sample(sample.messages[:2]))
    asked = proc.apply_chat_template(sample.messages[:1], tokenize=True, add_generation_prompt=True)
    assert example.input_ids[: len(asked)].tolist() == asked
    assert (example.labels[: len(asked)] == IGNORE).all()
    assert example.labels[len(asked) : len(asked) + len(alone)].tolist() == alone


def test_answers_keep_their_whitespace_and_typed_control_tokens() -> None:
    tokeniser = Tokeniser(processor(FAMILIES["Qwen2.5"][0]), max_length=500)
    text = "  two\n\nlines <|im_end|> <image> \n"
    sample = Sample([{"role": "user", "content": "a"}, {"role": "assistant", "content": text}])
    assert learned(tokeniser, tokeniser(sample)) == text + "<|im_end|>"


@pytest.mark.parametrize("kind", REFUSED)
def test_a_template_that_cannot_be_trained_with_is_refused(kind: str) -> None:
    template, sentence = REFUSED[kind]
    with pytest.raises((ConfigError, CheckpointError), match=sentence):
        Tokeniser(processor(template), max_length=500)


def test_the_command_refuses_a_template_and_keeps_one_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = bases.pretrain_recipe(tmp_path)
    bad, good = tmp_path / "bad.jinja", tmp_path / "good.jinja"
    bad.write_text(REFUSED["a role that is never asked for"][0])
    command = ["vora-serve", "pretrain", "--config", str(recipe), "optimisation.steps=1"]

    def run(template: Path) -> int:
        monkeypatch.setattr("sys.argv", [*command, f"model.chat_template={template}"])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    assert run(bad) == 2
    said = capsys.readouterr().err
    assert "opens an answer with <|im_start|>" in said
    assert "model.chat_template" in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    good.write_text(FAMILIES["Qwen2.5"][0])
    assert run(good) == 0
    kept = (tmp_path / "pretrained" / "chat_template.jinja").read_text()
    assert kept == good.read_text()


def test_an_llm_keeps_its_own_template(tmp_path: Path) -> None:
    from vora_serve.training.processor import load_processor
    from vora_serve.training.run_recipe import ModelSettings

    folder = bases.save_llm(tmp_path / "llm")
    own = FAMILIES["Qwen2.5"][0]
    (folder / "chat_template.jinja").write_text(own)
    images = world.processor().settings
    assert load_processor(ModelSettings(path=str(folder)), images).chat_template == own
    released = ModelSettings(path=str(folder), chat_template="chatml")
    assert "You are a helpful assistant." in load_processor(released, images).chat_template
