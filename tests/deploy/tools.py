"""Programs that the checks of the deployment files use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import pytest

from tests.deploy.compose import ROOT

LIMIT_S = 900
"""Seconds after which a program hangs rather than takes its time on a busy machine."""


def tool(name: str, package: str) -> str:
    """A program's path; skips the test where it is missing.

    With ``VORA_DEPLOY_TOOLS=required``, as where ``.ci/run`` has installed them, it fails instead.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        unavailable(f"{name} is not installed (package {package})")
    return found


def unavailable(reason: str) -> NoReturn:
    """Skip the test; with ``VORA_DEPLOY_TOOLS=required``, fail it."""
    if os.environ.get("VORA_DEPLOY_TOOLS") == "required":
        pytest.fail(reason)
    pytest.skip(reason)


def run(
    command: Sequence[str],
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
) -> str:
    """Run a program to its end.

    Returns:
        What it printed, both streams together; the test fails where its exit code is not 0.
    """
    done = subprocess.run(
        list(command),
        cwd=cwd,
        env={**os.environ, **(env or {})},
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"
    return done.stdout


_VLLM = """
import contextlib, io, json, sys
from model_plugin.engine.compat import mark_cpu_build
mark_cpu_build()
from vllm import envs
from vllm.entrypoints.cli.serve import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser(prog="vllm"))
parser.exit_on_error = False
faults = []
given = json.load(sys.stdin)
for arguments in given["commands"]:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parser.parse_args(arguments)
    except BaseException as error:
        faults.append([arguments, f"{said.getvalue()} {error}"])
unknown = [name for name in given["variables"] if name not in envs.environment_variables]
print("RESULT" + json.dumps({"faults": faults, "unknown": unknown}))
"""


def ask_vllm(
    commands: Sequence[Sequence[str]], variables: Sequence[str] = ()
) -> tuple[list[list[object]], list[str]]:
    """Command lines that vLLM's parser refuses, and variables that it does not know."""
    given = {"commands": [list(command) for command in commands], "variables": list(variables)}
    out = run([sys.executable, "-c", _VLLM], stdin=json.dumps(given))
    answer = json.loads(out.rpartition("RESULT")[2])
    return answer["faults"], answer["unknown"]
