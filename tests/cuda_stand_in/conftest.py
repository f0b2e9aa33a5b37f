"""Tests here run in the stand-in's environment only; see ``make test-cuda-stand-in``."""

import os

if os.environ.get("VORA_CUDA_STAND_IN"):
    from tests.cuda_stand_in import graphs, machine
    from tests.model_plugin.conftest import make_checkpoint

    __all__ = ["make_checkpoint"]
    machine.install()
    graphs.install()
else:
    collect_ignore_glob = ["test_*.py"]
