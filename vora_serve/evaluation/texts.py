"""Text alone: does a model still answer as the LLM that it was made from?

A file holds JSON lines or one JSON array of records with ``question`` and ``answer``, the answer
that the LLM's greedy decoding gave. The engine must return ``prompt_logprobs``, as vLLM does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vora_core.errors import ConfigError
from vora_serve.evaluation.client import Ask, Endpoint, EvaluationError, chat_request, for_all
from vora_serve.evaluation.files import Scores, read_records


@dataclass(frozen=True)
class Text:
    """A question without an image, and the LLM's own answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class TextReply:
    """What a model makes of a text.

    Attributes:
        reply: its own answer, greedily decoded.
        logprobs: natural logarithms of the probability of each token of the LLM's answer.
        chosen: for each of them, whether greedy decoding would choose it too.
    """

    reply: str
    logprobs: tuple[float, ...]
    chosen: tuple[bool, ...]


def read_texts(file: Path, limit: int | None) -> list[Text]:
    """The texts of a file.

    Raises:
        ConfigError: the file or a record is not as it should be.
    """
    texts = []
    for number, record in enumerate(read_records(file)[:limit], 1):
        known = record if isinstance(record, dict) else {}
        question, answer = known.get("question"), known.get("answer")
        if not all(isinstance(text, str) and text.strip() for text in (question, answer)):
            raise ConfigError(f"{file}, text {number}: it needs a question and an answer.")
        texts.append(Text(str(question), str(answer)))
    if not texts:
        raise ConfigError(f"{file} holds no texts.")
    return texts


def ask_texts(
    endpoint: Endpoint, texts: Sequence[Text], progress: Callable[[], None] = lambda: None
) -> list[TextReply]:
    """Have a model answer every text, and weigh the LLM's answers.

    Args:
        endpoint: the server.
        texts: what is asked.
        progress: called after every text.

    Raises:
        EvaluationError: the server cannot be reached, refuses a question, or returns no
            log-probabilities of prompts.
    """

    async def one(post: Ask, model: str, text: Text) -> TextReply:
        # No token is shorter than a byte, and one ends the answer.
        body = chat_request(model, None, text.question, len(text.answer.encode()) + 1)
        said = await post("/chat/completions", body)
        told = [*body["messages"], {"role": "assistant", "content": text.answer}]
        weighed = await post(
            "/chat/completions",
            body
            | {
                "messages": told,
                "add_generation_prompt": False,
                "continue_final_message": True,
                "prompt_logprobs": 0,
                "max_tokens": 1,
            },
        )
        try:
            reply = str(said["choices"][0]["message"]["content"] or "")
            return _weigh(reply, weighed["prompt_logprobs"][said["usage"]["prompt_tokens"] :])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise EvaluationError(
                "The server returns no log-probabilities of prompts (prompt_logprobs), which the "
                "suite text needs."
            ) from error

    return for_all(endpoint, texts, one, progress)


def _weigh(reply: str, entries: Sequence[dict[str, dict[str, Any]]]) -> TextReply:
    """The first of an entry's tokens is the prompt's own."""
    own = [next(iter(entry.values())) for entry in entries]
    if not own:
        raise ValueError("no token of the answer")
    return TextReply(
        reply,
        tuple(float(token["logprob"]) for token in own),
        tuple(int(token["rank"]) == 1 for token in own),
    )


def score_texts(texts: Sequence[Text], replies: Sequence[TextReply]) -> Scores:
    """Scores: ``same_answers`` (whole), ``agreement`` (tokens that greedy decoding chooses too,
    after the LLM's own ones), and ``perplexity`` of the LLM's answers."""
    chosen = [token for reply in replies for token in reply.chosen]
    logprobs = [value for reply in replies for value in reply.logprobs]
    same = [text.answer.strip() == r.reply.strip() for text, r in zip(texts, replies, strict=True)]
    return Scores(
        len(texts),
        {
            "same_answers": sum(same) / len(same),
            "agreement": sum(chosen) / len(chosen),
            "perplexity": math.exp(-sum(logprobs) / len(logprobs)),
        },
    )
