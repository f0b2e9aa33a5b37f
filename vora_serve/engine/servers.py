"""The processes that answer HTTP: what this project changes in vLLM's server.

By default the engine's main process answers itself. With ``--api-server-count`` above 1, vLLM
spawns processes that do; they start at ``run_api_server``.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Any

from model_plugin.engine import mark_cpu_build
from model_plugin.engine.whitespace import bound_in_calls
from vora_serve.engine.json_bodies import parse_bodies_fast
from vora_serve.engine.stopping import finishing

# A spawned process imports this module before anything of vLLM.
mark_cpu_build()

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies, so that no engine is left behind."""
    if sys.platform == "linux" and os.environ.get("VORA_SERVE_SUPERVISED") == "1":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def prepare_server() -> None:
    """Change how vLLM's HTTP server in this process stops, parses bodies and writes grammars."""
    from vllm.entrypoints.launchers import launcher

    launcher.NoSignalServer = finishing(launcher.NoSignalServer)
    bound_in_calls()
    parse_bodies_fast()


def prepare_spawned_servers() -> None:
    """Let the servers that vLLM spawns from this process start at ``run_api_server``."""
    from vllm.v1 import utils

    utils.run_api_server_worker_proc = run_api_server


def run_api_server(*arguments: Any, **options: Any) -> None:
    """Be one of several HTTP servers; the arguments are vLLM's."""
    from vllm.v1.utils import run_api_server_worker_proc

    die_with_parent()
    prepare_server()
    run_api_server_worker_proc(*arguments, **options)
