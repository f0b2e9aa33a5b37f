"""What a project shows the world: licence, citation, version, workflows, release notes."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import loadtest
import model_plugin
import vora_core
import vora_serve
from tests.import_rules import PACKAGES
from vora_core.versions import SUPPORTED_PYTHON

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
VERSIONS = [
    f"{SUPPORTED_PYTHON[0][0]}.{minor}"
    for minor in range(SUPPORTED_PYTHON[0][1], SUPPORTED_PYTHON[1][1])
]


def check_schema(name: str, *files: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", name]
    done = subprocess.run([*command, *map(str, files)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_licence_is_the_one_that_is_claimed() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License\n" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_notice_names_every_vendored_part() -> None:
    notice = (ROOT / "NOTICE").read_text()
    folders = [path for name in PACKAGES for path in (ROOT / name).rglob("vendor")]
    assert folders
    for file in (file for folder in folders for file in folder.iterdir()):
        if file.name != "README.md":
            assert str(file.relative_to(ROOT)) in notice
    assert "vora_serve/world/digits.npz" in notice
    assert (ROOT / "vora_serve" / "world" / "digits.npz").is_file()


def test_the_citation_is_valid_and_of_this_version() -> None:
    check_schema("vendor.citation-file-format", ROOT / "CITATION.cff")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == vora_core.__version__
    assert len(citation["preferred-citation"]["authors"]) == 8


def test_there_is_one_version() -> None:
    versions = {package.__version__ for package in (vora_serve, model_plugin, loadtest)}
    assert versions == {vora_core.__version__}
    shown = subprocess.run(
        [sys.executable, "-m", "vora_serve", "--version"],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    assert shown.stdout == f"vora-serve {vora_core.__version__}\n"


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_the_workflows_are_valid(file: Path) -> None:
    check_schema("vendor.github-workflows", file)
    check_schema("custom.github-workflows-require-timeout", file)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = set(re.findall(r"\bmake (?:\w+=(?:\$\{\{.*?\}\}|\S)+ )*([a-z-]+)", file.read_text()))
    assert asked <= targets


def test_every_supported_python_is_tested_and_claimed() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == VERSIONS
    claimed = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if "Python :: 3." in c]
    assert claimed == VERSIONS


def test_release_notes_are_the_changelogs_section() -> None:
    script = str(ROOT / ".github" / "release-notes.sh")
    notes = subprocess.run([script, "Unreleased"], capture_output=True, text=True, check=True)
    assert notes.stdout.strip()
    assert "## " not in re.sub(r"^### ", "", notes.stdout, flags=re.MULTILINE)
    missing = subprocess.run([script, "9.9"], capture_output=True, text=True, check=False)
    assert missing.returncode == 1
    assert missing.stderr == "CHANGELOG.md has no section '## 9.9'.\n"
