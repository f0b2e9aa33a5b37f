"""``vora-serve loadtest``: the load test's own command line, in a process of its own.

The load test knows servers only by HTTP, and nothing here imports it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import typer

from vora_serve.command import App, Command

app = App(add_completion=False)
_PASS_ON = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}


class _Delegated(Command):
    """A command whose words the load test reads; shells complete them as well."""

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """What may follow, as the load test says."""
        asked = [sys.executable, "-m", "loadtest.complete", *ctx.args, incomplete]
        said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
        return [SimpleNamespace(value=name, type="plain", help=None) for name in said.splitlines()]


@app.command("loadtest", cls=_Delegated, context_settings=_PASS_ON)
def run_loadtest(context: typer.Context) -> None:
    """Measure servers under load in pairs. See: vora-serve loadtest --help"""
    os.environ["LOADTEST_PROGRAM"] = context.command_path
    os.execv(sys.executable, [sys.executable, "-m", "loadtest", *context.args])
