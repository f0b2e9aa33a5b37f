"""Options of ``vora-serve serve`` and ``engine`` separated from those of vLLM."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from typer.core import TyperOption

from vora_serve.command import Command

#: Key of a command's context under which vLLM's options are left.
ENGINE_ARGS = "vora_serve.engine_args"


def split(
    args: Sequence[str], own: Mapping[str, bool], fail: Callable[[str], NoReturn]
) -> tuple[list[str], list[str]]:
    """Tell this program's options from vLLM's.

    An option that this program does not know is vLLM's, with the words that follow it, up to the
    next option of this program. Everything after ``--`` is vLLM's.

    Args:
        args: the command line after the command's name.
        own: this program's options, and whether each takes a value.
        fail: called with a sentence if an unknown option resembles one of this program's.

    Returns:
        This program's words, and vLLM's.
    """
    mine: list[str] = []
    engine: list[str] = []
    words = iter(args)
    after_unknown = False
    for word in words:
        name, sign, _ = word.partition("=")
        if word == "--":
            engine.extend(words)
        elif name in own:
            after_unknown = False
            mine.append(word)
            if own[name] and not sign:
                mine.extend(word for word in [next(words, None)] if word is not None)
        elif word.startswith("-") and word != "-":
            if near := _meant(name, own):
                fail(f"No such option: {name}. Did you mean {near}?")
            after_unknown = True
            engine.append(word)
        else:
            (engine if after_unknown else mine).append(word)
    return mine, engine


def _meant(name: str, own: Mapping[str, bool]) -> str | None:
    """The option that was probably meant: one letter more, less or different, or two swapped."""
    return next((option for option in own if option[:2] == "--" and _one_edit(name, option)), None)


def _one_edit(a: str, b: str) -> bool:
    while a and b and a[0] == b[0]:
        a, b = a[1:], b[1:]
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    return max(len(a), len(b)) == 1 or (len(a) == 2 and a == b[::-1])


class EngineCommand(Command):
    """A command whose unknown options are vLLM's; they are left in the context."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Set vLLM's options aside, then parse the rest."""
        own = dict.fromkeys(ctx.help_option_names, False)
        for param in self.params:
            if isinstance(param, TyperOption):
                takes_value = not param.is_flag and not param.count
                own |= dict.fromkeys((*param.opts, *param.secondary_opts), takes_value)
        mine, engine = split(args, own, ctx.fail)
        ctx.meta[ENGINE_ARGS] = engine
        return super().parse_args(ctx, mine)
