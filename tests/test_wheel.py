"""The wheel: names that collide with nobody's, and everything works under them."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hatch_build import PACKAGES, renamed
from tests.import_rules import ROOT, imports

OWN = set(PACKAGES.values())
SHORT = {name for name, own in PACKAGES.items() if name != own}
# The checkout is out of reach, although this environment has it installed.
START = f"import sys; sys.path[:] = [path for path in sys.path if path != {str(ROOT)!r}]\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel",
         "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """A folder with what the wheel installs."""
    folder = wheel.parent / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(installed: Path, code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", START + code],
        cwd=installed.parent,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_its_top_level_is_ours(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        top = {name.split("/")[0] for name in archive.namelist()}
    (metadata,) = (name for name in top if name.endswith(".dist-info"))
    assert top - {metadata} == OWN
    assert all(name.startswith("vora_") for name in OWN)


def test_it_holds_the_files_of_the_checkout(installed: Path) -> None:
    for name, own in PACKAGES.items():
        tracked = subprocess.run(
            ["git", "ls-files", name], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.split()
        if not tracked:
            pytest.skip("this is not a git checkout")
        expected = {Path(own, *Path(file).parts[1:]) for file in tracked}
        found = {p.relative_to(installed) for p in (installed / own).rglob("*") if p.is_file()}
        assert expected <= found


def test_no_module_of_it_imports_a_short_name(installed: Path) -> None:
    for file in installed.rglob("*.py"):
        module = ".".join(file.relative_to(installed).with_suffix("").parts)
        tops = {target.split(".")[0] for _, target in imports(file.read_text(), module)}
        assert not tops & SHORT, module


def test_renaming_leaves_words_and_paths_alone() -> None:
    kept = 'run("loadtest: broken", "docs/loadtest.md", "tests/model_plugin/x.py", my_model_plugin)'
    assert renamed(kept) == kept
    assert renamed("from loadtest.cli import main\n    import loadtest as l") == (
        "from vora_loadtest.cli import main\n    import vora_loadtest as l"
    )
    assert renamed('"model_plugin.engine.x.Y", "-m", "loadtest"') == (
        '"vora_model_plugin.engine.x.Y", "-m", "vora_loadtest"'
    )


def test_every_light_module_loads(installed: Path) -> None:
    code = """
import pkgutil, vora_core, vora_loadtest, vora_serve.gateway
for package in (vora_core, vora_loadtest, vora_serve.gateway):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not found.name.startswith("vora_loadtest.programs") and "__main__" not in found.name:
            __import__(found.name)
print(sorted({name.split(".")[0] for name in sys.modules} & {"model_plugin", "loadtest", "torch"}))
"""
    assert run(installed, code) == "[]\n"


@pytest.mark.engine
def test_transformers_and_vllm_find_the_model(installed: Path) -> None:
    """The entry point leads to the plugin; with it, Auto classes and vLLM know a checkpoint."""
    code = """
from importlib.metadata import entry_points
from importlib.resources import files
(point,) = [p for p in entry_points(group="vllm.general_plugins") if p.name == "vora"]
print(point.value, point.load().__module__)
from transformers import AutoConfig
config = AutoConfig.from_pretrained(files("vora_serve") / "demo" / "checkpoint")
print(type(config).__module__)
from vora_model_plugin.engine import mark_cpu_build
mark_cpu_build()
from vllm.plugins import load_general_plugins
load_general_plugins()
from vllm import ModelRegistry
print("VoRAForCausalLM" in ModelRegistry.get_supported_archs(), "model_plugin" in sys.modules)
"""
    assert run(installed, code).splitlines()[-3:] == [
        "vora_serve.plugin:register vora_model_plugin",
        "vora_model_plugin.config",
        "True False",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--version"], "vora-serve "),
        (["loadtest", "--help"], "Load tests over HTTP."),
        (["doctor"], "the VoRA plugin is registered with vLLM"),
    ],
    ids=["version", "loadtest", "doctor"],
)
def test_the_command_works(installed: Path, arguments: list[str], said: str) -> None:
    code = f"sys.argv = ['vora-serve', *{arguments!r}]\nfrom vora_serve.cli import main\nmain()\n"
    assert said in run(installed, code)
