"""The command line in this process: what a command prints and its exit code, without a start.

A start imports for a second; the hundred commands of the tests would spend minutes on it. What
depends on the process itself (signals, streams, imports, pipes) starts one instead.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from subprocess import CompletedProcess
from unittest import mock

from vora_serve.cli import main


def run(*arguments: str, **environment: str) -> CompletedProcess[str]:
    """Run ``vora-serve`` with these arguments.

    Args:
        arguments: as they are typed.
        environment: variables that are set beside this process's.

    Returns:
        Exit code and texts, as :func:`subprocess.run` gives them.
    """
    out, err = io.StringIO(), io.StringIO()
    code: int | str | None = 0
    with (
        mock.patch.object(sys, "argv", ["vora-serve", *arguments]),
        mock.patch.dict(os.environ, environment),
        # A command that becomes another program would take the tests with it.
        mock.patch.object(os, "execv", side_effect=AssertionError("needs a process of its own")),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    return CompletedProcess(list(arguments), int(code or 0), out.getvalue(), err.getvalue())
