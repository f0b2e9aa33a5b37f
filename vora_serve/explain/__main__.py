"""The process that ``vora-serve serve`` starts when somebody first looks into an answer.

``python -m vora_serve.explain FD MODEL IDLE_S`` serves on the inherited socket FD, and ends when
nobody has asked for IDLE_S seconds, or when its standard input closes: with its parent.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vora_serve.explain.look import Explainer

#: After a failure: long enough for those who wait to read why, short enough to try again soon.
_FAILED_IDLE_S = 5.0
_MAX_THREADS = 4


def _end_with_parent() -> None:
    os.read(0, 1)  # not through sys.stdin, whose lock this thread would hold at the end
    os.kill(os.getpid(), signal.SIGTERM)


def _load(model: str) -> Explainer | str:
    """The model, or in one sentence why there is none."""
    try:
        import torch
        import transformers

        from vora_serve.explain.look import Explainer

        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        # The engine works on the same cores, and goes first.
        torch.set_num_threads(max(1, min(_MAX_THREADS, (os.cpu_count() or 1) // 2)))
        return Explainer(model, dtype=torch.float32)
    except Exception as error:  # noqa: BLE001 - whatever it is, those who wait are told
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.stderr.flush()
        return "This model cannot be looked into; the server's log says why."


def main() -> None:
    """The process's whole life."""
    descriptor, model, idle_s = sys.argv[1:]
    os.nice(5)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    explainer = _load(model)

    from vora_serve.explain.server import serve

    idle_exit_s = _FAILED_IDLE_S if isinstance(explainer, str) else float(idle_s)
    serve(explainer, socket.socket(fileno=int(descriptor)), idle_exit_s)
    sys.exit(isinstance(explainer, str))


if __name__ == "__main__":
    main()
