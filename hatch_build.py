"""The wheel's packages: those of the checkout, but no generic names.

``model_plugin`` and ``loadtest`` become ``vora_model_plugin`` and ``vora_loadtest``, as folders and
in the code of all packages, so that an installed wheel collides with nobody's modules. A checkout,
and its editable installation, keep the short names.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGES = {
    "vora_core": "vora_core",
    "vora_serve": "vora_serve",
    "model_plugin": "vora_model_plugin",
    "loadtest": "vora_loadtest",
}
# Whoever writes model_plugin means the package; "loadtest" is also a word.
_MODEL_PLUGIN = re.compile(r"(?<![\w/.-])model_plugin(?![\w/-])")
_LOADTEST = re.compile(
    r"""(^\s*(?:from|import)\s+|"-m",\s*"|python\ -m\ )loadtest\b""", re.MULTILINE | re.VERBOSE
)
_NOT_SHIPPED = shutil.ignore_patterns("__pycache__")


def renamed(source: str) -> str:
    """A module's source with the wheel's names of the packages."""
    return _LOADTEST.sub(r"\1vora_loadtest", _MODEL_PLUGIN.sub("vora_model_plugin", source))


class RenamePackages(BuildHookInterface):
    """Hatch's build hook of that."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Lay the packages out in a folder of their own, and have the wheel made from it."""
        if version == "editable":
            return
        root, staged = Path(self.root), Path(self.directory) / "wheel"
        shutil.rmtree(staged, ignore_errors=True)
        for name, own in PACKAGES.items():
            shutil.copytree(root / name, staged / own, ignore=_NOT_SHIPPED)
            build_data["force_include"][str(staged / own)] = own
        for file in staged.rglob("*.py"):
            file.write_text(renamed(file.read_text(encoding="utf-8")), encoding="utf-8")

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the folder."""
        shutil.rmtree(Path(self.directory) / "wheel", ignore_errors=True)
