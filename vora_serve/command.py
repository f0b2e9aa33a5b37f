"""Typer apps whose commands refuse empty values and check their packages before they start."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand
from typer.models import CommandFunctionType

from vora_core.installation import require

#: Parameters that take free text, which may be empty. What follows ``--`` is vLLM's to check.
_FREE_TEXT = frozenset({"question", "system", "prompt", "answer", "engine_args"})
_HELP = {"help_option_names": ["-h", "--help"]}


class Command(TyperCommand):
    """A command that refuses ``--option ""`` with one sentence.

    Attributes:
        needs: the extra whose packages it needs; they are looked for before it starts.
        renamed_to: its new name, if this is the old one.
    """

    needs: ClassVar[str | None] = None
    renamed_to: ClassVar[str | None] = None

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

    def invoke(self, ctx: Any) -> Any:
        """Warn about an old name, look for the packages, then run.

        Raises:
            ConfigError: a package is missing.
        """
        if self.renamed_to is not None:
            sys.stderr.write(
                f"vora-serve: '{self.name}' is now called '{self.renamed_to}'; "
                "the old name will be removed in the next release.\n"
            )
        if self.needs is not None:
            require(self.needs, f"'{ctx.command_path}'")
        return super().invoke(ctx)


class App(typer.Typer):
    """A typer app of such commands."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs["context_settings"] = _HELP | (kwargs.get("context_settings") or {})
        super().__init__(**kwargs)

    def command(
        self,
        name: str | None = None,
        *,
        needs: str | None = None,
        formerly: str | None = None,
        cls: type[TyperCommand] | None = None,
        **kwargs: Any,
    ) -> Callable[[CommandFunctionType], CommandFunctionType]:
        """As typer's.

        Args:
            needs: an extra whose packages the command needs.
            formerly: its old name, which still works, with a warning.
        """
        kwargs["context_settings"] = _HELP | (kwargs.get("context_settings") or {})
        base = cls or Command

        def add(function: CommandFunctionType) -> CommandFunctionType:
            new = name or function.__name__.replace("_", "-")
            if formerly is not None:
                old = type(base.__name__, (base,), {"needs": needs, "renamed_to": new})
                typer.Typer.command(self, formerly, cls=old, hidden=True, **kwargs)(function)
            kind = type(base.__name__, (base,), {"needs": needs})
            return typer.Typer.command(self, name, cls=kind, **kwargs)(function)

        return add
