"""Launching and supervising vLLM. vLLM itself is imported only in the engine's subprocess."""

from vora_serve.engine.checkpoint import ServedCheckpoint, check_checkpoint
from vora_serve.engine.launch import (
    AdapterFlags,
    EngineLaunch,
    check_engine_installed,
    engine_command,
)
from vora_serve.engine.supervisor import EngineSupervisor

__all__ = [
    "AdapterFlags",
    "ServedCheckpoint",
    "EngineLaunch",
    "EngineSupervisor",
    "check_checkpoint",
    "check_engine_installed",
    "engine_command",
]
