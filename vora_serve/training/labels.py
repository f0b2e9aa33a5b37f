"""Which tokens of a conversation are learned: answers as the chat template shows them.

Templates differ: some open an answer with tokens of their own, some with nothing; some write an
empty thought before the last answer, some drop what was thought from earlier ones; some end answers
with the tokenizer's end of text, some do not. So nothing is assumed of them. What is learned of an
answer begins where the rendering of everything before it, with a generation prompt, ends, since a
served model goes on from there; and it ends with the token that the template puts after it, at
which a served model stops. Both are looked up in the rendering that is trained on. A conversation
that a template shows otherwise is refused.
"""

from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from model_plugin import ConfigError, VoRAError, VoRAProcessor
from model_plugin.chat import Shield, control_tokens
from model_plugin.images import IMAGE_TOKEN, RELEASED_IMAGE_TOKEN

Messages = list[dict[str, Any]]
#: Marks the end of a text in a rendering; a shield lets no text of a user's hold it.
_END = "\U000f0000\U000ffffd"


class SampleError(VoRAError, ValueError):
    """A sample cannot be trained on; the sentence says why.

    Args:
        message: the sentence.
        kind: what such samples are counted under.
    """

    def __init__(self, message: str, kind: str = "conversation") -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Labelled:
    """A conversation's tokens.

    Attributes:
        ids: with one placeholder an image.
        learned: ranges of them that are targets, the first and the one after the last.
    """

    ids: list[int]
    learned: list[tuple[int, int]]


class Labeller:
    """Conversations to tokens, and which of them are targets.

    Args:
        processor: its chat template decides.

    Raises:
        ConfigError: the template opens answers otherwise than it asks for them, or ends them with
            no token of its own.
    """

    def __init__(self, processor: VoRAProcessor) -> None:
        self.processor = processor
        tokenizer = processor.tokenizer
        self.controls = [*control_tokens(tokenizer), RELEASED_IMAGE_TOKEN]
        added = tokenizer.added_tokens_decoder.values()
        self.special = {str(token) for token in added if token.special} - {IMAGE_TOKEN}
        self.ending = ""
        probe = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
        try:
            self.ending = self._ending(probe)
            self.opening: list[int] = self._opening(probe)
            self(probe)
        except SampleError as error:
            raise ConfigError(f"{error} Set model.chat_template to another.") from error

    def __call__(self, messages: Messages) -> Labelled:
        """Tokenise a conversation.

        Args:
            messages: as in :class:`vora_serve.training.data.Sample`.

        Raises:
            SampleError: the template's rendering leaves open what is to be learned.
        """
        shield = Shield(self.controls)
        hidden = shield.hide(messages)
        plain = self._render(hidden)
        answers = [i for i, message in enumerate(hidden) if message["role"] == "assistant"]
        ends = self._ends(hidden, answers, plain)
        cuts: list[int] = []
        for index, end in zip(answers, ends, strict=True):
            start = self._start(hidden, index, plain)
            if start > end:
                raise SampleError("The chat template opens an answer behind its end.")
            given = self.special.intersection(shield.controls(plain, start, end))
            if given:
                raise SampleError(
                    f"The chat template opens an answer with {min(given)} where it shows one, but "
                    "not where it asks for one (add_generation_prompt)."
                )
            cuts += [start, self._after_ending(shield, plain, end)]
        rendered = plain.replace(RELEASED_IMAGE_TOKEN, IMAGE_TOKEN)
        if rendered != plain:
            shorter = len(RELEASED_IMAGE_TOKEN) - len(IMAGE_TOKEN)
            cuts = [cut - shorter * plain.count(RELEASED_IMAGE_TOKEN, 0, cut) for cut in cuts]
        ids, places = shield.encode_cut(self.processor.tokenizer, rendered, cuts)
        return Labelled(ids, list(zip(places[::2], places[1::2], strict=True)))

    def _render(self, messages: Messages, *, ask: bool = False) -> str:
        try:
            return str(self.processor.apply_chat_template(messages, add_generation_prompt=ask))
        # A template fails in its own words, or like any program.
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise SampleError(
                f"The chat template refuses the conversation: {error}", "template"
            ) from error

    def _ends(self, messages: Messages, answers: list[int], plain: str) -> list[int]:
        """Where each answer's own text ends in the rendering."""
        pieces = self._render(_marked(messages, answers)).split(_END)
        if "".join(pieces) != plain or len(pieces) != len(answers) + 1:
            raise SampleError(
                "The chat template does not show each answer once and as it is written.", "template"
            )
        ends, place = [], 0
        for piece in pieces[:-1]:
            place += len(piece)
            ends.append(place)
        return ends

    def _start(self, messages: Messages, index: int, plain: str) -> int:
        """Where the template has asked for the answer ``messages[index]``."""
        asked = self._render(messages[:index], ask=True)
        if plain.startswith(asked):
            return len(asked)
        # Some templates move the system's message to wherever the last question is. What stands
        # between question and answer is still theirs to compare.
        if index:
            before, _, behind = self._render(_marked(messages, [index - 1])).partition(_END)
            _, _, prompt = self._render(_marked(messages[:index], [index - 1]), ask=True).partition(
                _END
            )
            if before + behind == plain and prompt and behind.startswith(prompt):
                return len(before) + len(prompt)
        raise SampleError(
            "The chat template asks for an answer (add_generation_prompt) otherwise than it shows "
            "one."
        )

    def _after_ending(self, shield: Shield, plain: str, end: int) -> int:
        """The place behind the token that ends an answer."""
        token = next(shield.controls(plain, end), None)
        place = plain.find(token, end) if token is not None else -1
        if token is None or (plain[end:place] + token).strip() != self.ending:
            raise SampleError(f"The chat template does not end an answer with {self.ending}.")
        return place + len(token)

    def _ending(self, probe: Messages) -> str:
        """What the template writes behind an answer, up to the token that ends it."""
        shield = Shield(self.controls)
        _, _, tail = self._render(_marked(probe, [1])).partition(_END)
        token = next(shield.controls(tail, 0), None)
        if token is None:
            raise SampleError(
                "The chat template ends an answer with no token of its own, at which generation "
                "could stop."
            )
        return (tail[: tail.find(token)] + token).strip()

    def _opening(self, probe: Messages) -> list[int]:
        """Tokens with which the template asks for an answer; none where the question ends so."""
        question, asked = self._render(probe[:1]), self._render(probe[:1], ask=True)
        prompt = asked[len(question) :] if asked.startswith(question) else ""
        return Shield(self.controls).encode(self.processor.tokenizer, prompt)


def _marked(messages: Messages, indices: list[int]) -> Messages:
    """The conversation with the ends of some messages' texts marked, before whitespace."""
    found = list(messages)
    for index in indices:
        content = found[index]["content"]
        if isinstance(content, str):
            kept = content.rstrip()
            content = kept + _END + content[len(kept) :]
        else:
            content = [*content, {"type": "text", "text": _END}]
        found[index] = found[index] | {"content": content}
    return found
