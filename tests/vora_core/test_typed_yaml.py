"""YAML files as models: bases, overrides, and one sentence for each kind of mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field

from vora_core import typed_yaml
from vora_core.errors import ConfigError


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    steps: int = Field(default=1, gt=0)
    names: tuple[str, ...] = ()


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    optimisation: Inner = Inner()
    text: str = ""


def load(folder: Path, text: str, *overrides: str) -> Outer:
    file = folder / "a.yaml"
    file.write_text(text)
    return typed_yaml.load(Outer, file, overrides, subject="recipe", based=True)


def test_overrides_lie_over_the_file_and_the_file_over_its_base(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("optimisation: {steps: 5, names: [a, b]}\ntext: x")
    found = load(
        tmp_path,
        "base: base.yaml\noptimisation: {steps: 6}",
        "optimisation.names.1=c",
        "text='0'",
    )
    assert found.optimisation == Inner(steps=6, names=("a", "c"))
    assert found.text == "0"


def test_an_empty_file_and_an_empty_section(tmp_path: Path) -> None:
    assert load(tmp_path, "") == Outer()
    assert load(tmp_path, "optimisation:", "optimisation.steps=3").optimisation.steps == 3


def test_variables_are_filled_in(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("text: '{WHERE}/x'")
    found = typed_yaml.load(
        Outer, tmp_path / "a.yaml", subject="run file", variables={"WHERE": "here"}
    )
    assert found.text == "here/x"


@pytest.mark.parametrize(
    ("text", "overrides", "sentence"),
    [
        ("text: [", [], "is not valid YAML, line 1."),
        ("a: &x [*x", [], "is not valid YAML"),
        ("text: !!python/object:os.system x", [], "is not valid YAML, line 1."),
        ("- 1", [], "is not a mapping of keys to values."),
        ("1: 2", [], "is not a mapping of keys to values."),
        ("base: a.yaml", [], "has a base that refers back to it."),
        ("base: gone.yaml", [], "cannot be read: No such file or directory."),
        ("optimisation: {stps: 1}", [], "there is no key optimisation.stps; did you mean steps?"),
        ("zzz: 1", [], "there is no key zzz."),
        ("optimisation: {steps: 0}", [], "optimisation.steps: input should be greater than 0."),
        ("optimisation: 3", [], "In the recipe, optimisation: "),
        ("", ["text"], "An override is written key=value, not 'text'."),
        ("", ["=3"], "An override is written key=value, not '=3'."),
        ("", ["text={"], "The value of the override 'text={' is not valid YAML"),
        ("text: x", ["text.a=1"], "The override text.a reaches into something that has no keys."),
        ("", ["optimisation.names=[a]", "optimisation.names.3=b"], "reaches into something"),
    ],
)
def test_one_sentence(tmp_path: Path, text: str, overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, *overrides)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, sentence in (("none", "No such file"), ("binary", "not UTF-8"), (".", "directory")):
        with pytest.raises(ConfigError, match=sentence):
            typed_yaml.read(tmp_path / name, subject="recipe")
