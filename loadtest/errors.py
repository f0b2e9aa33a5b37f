"""The errors of the load tests; the tree is :mod:`vora_core.errors`."""

from vora_core.errors import ConfigError, EngineError, GeneratorError, VoRAError

LoadTestError = VoRAError
UsageError = ConfigError
ServerFailed = EngineError
GeneratorFailed = GeneratorError

__all__ = ["GeneratorFailed", "LoadTestError", "ServerFailed", "UsageError"]
