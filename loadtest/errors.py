"""What can go wrong, as an exception tree; each carries one sentence for the user."""

from __future__ import annotations


class LoadTestError(Exception):
    """Something failed; exit code 1."""

    exit_code = 1


class UsageError(LoadTestError):
    """The command line, a run file or a checkpoint is wrong; exit code 2."""

    exit_code = 2


class ServerFailed(LoadTestError):
    """A server died, did not start, or serves another model than before."""


class GeneratorFailed(LoadTestError):
    """The load generator could not be started or broke down."""
