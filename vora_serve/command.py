"""Typer apps whose commands refuse empty values, such as those of an unset shell variable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand
from typer.models import CommandFunctionType

#: Parameters that take free text, which may be empty. What follows ``--`` is vLLM's to check.
_FREE_TEXT = frozenset({"question", "system", "prompt", "answer", "engine_args"})


class Command(TyperCommand):
    """A command that refuses ``--option ""`` with one sentence."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Check what was given before typer converts it: ``Path("")`` is the current folder."""
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        for param in self.params:
            value = given.get(str(param.name))
            values = value if isinstance(value, list | tuple) else [value]
            if param.name not in _FREE_TEXT and "" in values:
                name = param.opts[0]
                raise typer.BadParameter("The value is empty.", ctx=ctx, param_hint=f"'{name}'")
        return super().parse_args(ctx, args)


class App(typer.Typer):
    """A typer app of such commands."""

    def command(
        self, *args: Any, **kwargs: Any
    ) -> Callable[[CommandFunctionType], CommandFunctionType]:
        """As typer's."""
        return super().command(*args, **{"cls": Command, **kwargs})
