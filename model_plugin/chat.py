"""Chat messages to token ids, such that text is only ever text.

A chat template writes control tokens; users write text. Tokenising the rendered string as a whole
would let a user who types ``<|im_end|>`` end the turn, or one who types ``<|image_pad|>`` claim an
image. Here control strings in what users wrote are set aside before the template runs and put back
after the rendered string has been cut at the template's own control tokens. Pieces between control
tokens are tokenised on their own, which is what tokenizers do anyway: ordinary text gets the ids
that it always gets.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from vora_core.geometry import IMAGE_TOKEN, RELEASED_IMAGE_TOKEN

# Two planes of private-use characters: a fence, and one character for each set-aside string.
_FENCE = "\U000f0000"
_FIRST_MARK = 0xF0001
_PRIVATE = re.compile("[\U000f0000-\U000ffffd]")


def encode_chat(
    tokenizer: PreTrainedTokenizerBase, render: Callable[..., str], *texts: Any
) -> list[int]:
    """Render a conversation and tokenise it, with everything in ``texts`` kept as text.

    Args:
        tokenizer: a fast tokenizer.
        render: called with shielded copies of ``texts``, returns the rendered conversation.
        *texts: JSON-like structures (messages, tools) whose strings users wrote.

    Returns:
        Token ids.
    """
    shield = Shield([*control_tokens(tokenizer), RELEASED_IMAGE_TOKEN])
    rendered = render(*(shield.hide(text) for text in texts))
    return shield.encode(tokenizer, rendered.replace(RELEASED_IMAGE_TOKEN, IMAGE_TOKEN))


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Strings that the tokenizer turns into a token of their own wherever they stand."""
    return [str(token) for token in tokenizer.get_added_vocab()]


class Shield:
    """Sets control strings in text aside and puts them back as text.

    Args:
        controls: the control tokens' strings.
    """

    def __init__(self, controls: Iterable[str]) -> None:
        self._controls = sorted(controls, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, self._controls)) or r"(?!)")
        self._beginnings = {c[:end] for c in self._controls for end in range(1, len(c))}
        # Insertion order numbers the marks.
        self._marks: dict[str, str] = {}

    @property
    def is_empty(self) -> bool:
        """Whether nothing had to be set aside."""
        return not self._marks

    def hide(self, value: Any) -> Any:
        """A copy of a JSON-like structure whose strings, keys included, hold no control token."""
        if isinstance(value, str):
            return self._hide_text(value)
        if isinstance(value, dict):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(item) for item in value]
        return value

    def encode(self, tokenizer: PreTrainedTokenizerBase, rendered: str) -> list[int]:
        """Token ids of a rendered conversation, control tokens only where the template put them."""
        return self.encode_cut(tokenizer, rendered, [])[0]

    def encode_cut(
        self, tokenizer: PreTrainedTokenizerBase, rendered: str, cuts: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """Token ids, and where some places of the rendered conversation are among them.

        Args:
            tokenizer: a fast tokenizer.
            rendered: the conversation.
            cuts: places in it, ascending. No token straddles one: where it would, the text before
                and the text behind are tokenised on their own, as they are when a model goes on
                from there.

        Returns:
            Token ids, and for each cut the number of tokens before it.
        """
        plain = plain_tokenizer(tokenizer)
        ids: list[int] = []
        places: list[int] = []

        def add_text(start: int, end: int) -> None:
            inside = [cut for cut in cuts[len(places) :] if cut <= end]
            borders = [start, *inside, end]
            pieces = [self.restore(rendered[a:b]) for a, b in pairwise(borders)]
            for encoded in _encode_pieces(plain, pieces):
                ids.extend(encoded)
                places.append(len(ids))
            places.pop()  # the end of the text, which is no cut of its own

        position = 0
        for match in self._pattern.finditer(rendered):
            add_text(position, match.start())
            ids.append(tokenizer.convert_tokens_to_ids(match.group()))
            position = match.end()
        add_text(position, len(rendered))
        return ids, places

    def controls(self, rendered: str, start: int, end: int | None = None) -> Iterator[str]:
        """Control tokens that a template wrote between two places of a rendered conversation."""
        part = self._pattern.finditer(rendered, start, len(rendered) if end is None else end)
        return (match.group() for match in part)

    def restore(self, rendered: str) -> str:
        """The rendered conversation with everything put back, for people to read."""
        hidden = list(self._marks)
        return re.sub(_FENCE + "(.)", lambda m: hidden[ord(m[1]) - _FIRST_MARK], rendered)

    def _hide_text(self, text: str) -> str:
        # Private-use characters of the user's own would be read as marks: set them aside too.
        text = _PRIVATE.sub(lambda m: self._mark(m[0]), text)
        text = self._pattern.sub(lambda m: self._mark(m[0]), text)
        # "<|im_" here and "end|>" in the next part would join into one.
        for length in range(max(map(len, self._controls), default=1) - 1, 0, -1):
            tail = text[-length:]
            if tail in self._beginnings:
                return text[:-length] + self._mark(tail)
        return text

    def _mark(self, text: str) -> str:
        if text not in self._marks:
            self._marks[text] = _FENCE + chr(_FIRST_MARK + len(self._marks))
        return self._marks[text]


def plain_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The tokenizer without its added tokens: it reads every string as text."""
    return _without_added_tokens(tokenizer.backend_tokenizer)


@lru_cache(maxsize=8)
def _without_added_tokens(backend: Tokenizer) -> Tokenizer:
    description = json.loads(backend.to_str())
    description["added_tokens"] = []
    description["post_processor"] = None
    description["truncation"] = description["padding"] = None
    return Tokenizer.from_str(json.dumps(description))


def _encode_pieces(plain: Tokenizer, pieces: list[str]) -> list[list[int]]:
    """Token ids of each piece of a text: of the text as a whole, where no token straddles two."""
    text = "".join(pieces)
    if not text:
        return [[] for _ in pieces]
    whole = plain.encode(text, add_special_tokens=False)
    borders = [0, *accumulate(map(len, pieces))]
    found = [0]
    for border in borders[1:-1]:
        # Ascending; the tokens of one character share its place.
        before = bisect_left(whole.offsets, border, key=lambda offset: offset[0])
        if before and whole.offsets[before - 1][1] > border:
            alone = (
                plain.encode(piece, add_special_tokens=False).ids if piece else []
                for piece in pieces
            )
            return [list(ids) for ids in alone]
        found.append(before)
    found.append(len(whole.ids))
    return [whole.ids[a:b] for a, b in pairwise(found)]
