"""Prompts and chats to token ids, such that images are where they were put and text is text.

In chat, whatever users write is tokenised as text (``model_plugin.chat``): it never becomes a
control token and never claims an image. In raw prompts ``<|image_pad|>`` and ``<image>`` both mark
an image, and there must be as many as images.
"""

from contextlib import suppress
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase
from vllm.config import VllmConfig
from vllm.exceptions import VLLMValidationError
from vllm.renderers.chat_utils import parse_chat_messages, parse_chat_messages_async
from vllm.renderers.hf import HfRenderer, safe_apply_chat_template
from vllm.renderers.params import ChatParams, TokenizeParams
from vllm.utils.async_utils import make_async

from model_plugin.chat import Shield, control_tokens
from model_plugin.chat_template import fit_content
from model_plugin.errors import CheckpointError, PlaceholderError
from model_plugin.images import IMAGE_TOKEN, RELEASED_IMAGE_TOKEN
from model_plugin.processor import VoRAProcessor

Messages = list[dict[str, Any]]
Prompt = dict[str, Any]

#: Where a prompt carries its shield and rendered conversation until it is tokenised.
_CHAT = "vora_chat"
#: Arguments of chat templates that no user text goes through.
_SETTINGS = frozenset({"chat_template", "tokenize", "return_dict"})


class VoRARenderer(HfRenderer):
    """vLLM's renderer for Hugging Face tokenizers, except where users write control strings."""

    def __init__(self, config: VllmConfig, tokenizer: PreTrainedTokenizerBase | None) -> None:
        super().__init__(config, tokenizer)
        self._render_async = make_async(self._render, executor=self._executor)

    @cached_property
    def processor(self) -> VoRAProcessor:
        """The checkpoint's own processor: its chat template, its image token."""
        if self.mm_processor is not None:
            processor: VoRAProcessor = self.mm_processor.info.processor
            return processor
        # Served for text only (``--limit-mm-per-prompt`` of 0).
        return VoRAProcessor.from_pretrained(
            self.model_config.model,
            revision=self.model_config.revision,
            config=self.model_config.hf_config,
            tokenizer=self.get_tokenizer(),
        )

    @cached_property
    def default_chat_tok_params(self) -> TokenizeParams:
        """Chat templates write all the control tokens that there are to be."""
        return super().default_chat_tok_params.with_kwargs(add_special_tokens=False)

    # Chat

    def render_messages(self, messages: Any, params: ChatParams) -> tuple[Any, Any]:
        """As ``render_messages_async``."""
        conversation, images, uuids = parse_chat_messages(
            messages,
            self.model_config,
            content_format="openai",
            media_io_kwargs=params.media_io_kwargs,
            mm_processor_kwargs=params.mm_processor_kwargs,
        )
        return conversation, self._render(conversation, params) | _given(images, uuids)

    async def render_messages_async(self, messages: Any, params: ChatParams) -> tuple[Any, Any]:
        """Parse and render a conversation.

        Args:
            messages: OpenAI-style messages.
            params: the template and its variables.

        Returns:
            The parsed conversation, and a prompt that is yet to be tokenised.

        Raises:
            VLLMValidationError: a role holds a control token, or the template refuses the
                conversation.
        """
        conversation, images, uuids = await parse_chat_messages_async(
            messages,
            self.model_config,
            content_format="openai",
            media_io_kwargs=params.media_io_kwargs,
            mm_processor_kwargs=params.mm_processor_kwargs,
        )
        prompt = await self._render_with_timeout(self._render_async(conversation, params))
        return conversation, prompt | _given(images, uuids)

    def _render(self, conversation: Any, params: ChatParams) -> Prompt:
        tokenizer = self.get_tokenizer()
        variables = params.get_apply_chat_template_kwargs()
        template = self._template(variables.get("chat_template"), variables.get("tools"))
        shield = Shield([*control_tokens(tokenizer), RELEASED_IMAGE_TOKEN])
        for message in conversation:
            if shield.hide(message["role"]) != message["role"]:
                raise VLLMValidationError("A role holds a control token.", parameter="messages")
        messages = shield.hide(_plain_parts(conversation))
        # Images that a template drops are missed once the prompt is tokenised.
        with suppress(CheckpointError):
            messages = fit_content(messages, template)
        written = {key: value for key, value in variables.items() if key not in _SETTINGS}
        rendered = safe_apply_chat_template(
            self.model_config,
            tokenizer,
            messages,
            chat_template=template,
            tokenize=False,
            **shield.hide(written),
        )
        # What the template itself wrote; what users wrote is hidden.
        rendered = rendered.replace(RELEASED_IMAGE_TOKEN, IMAGE_TOKEN)
        return {"prompt": shield.restore(rendered), _CHAT: (shield, rendered)}

    def _template(self, given: str | None, tools: Any) -> str:
        """The chat template: the one asked for, else the checkpoint's.

        The released checkpoints carry two. The processor's places images; the tokenizer's knows
        tools, and is taken when there are any and the other does not know them.
        """
        tokenizer = self.get_tokenizer()
        if given is not None:
            return str(tokenizer.get_chat_template(given, tools=tools))
        own = str(self.processor.chat_template)
        if tools and "tools" not in own and tokenizer.chat_template:
            other = str(tokenizer.get_chat_template(None, tools=tools))
            return other if "tools" in other else own
        return own

    # Tokens

    def _tokenize_prompt(self, prompt: Any, params: TokenizeParams) -> Any:
        """Token ids of a chat or a raw prompt, one image token for each image."""
        prompt = dict(prompt)
        chat = prompt.pop(_CHAT, None)
        if chat is None:
            text = prompt["prompt"].replace(RELEASED_IMAGE_TOKEN, IMAGE_TOKEN)
            return super()._tokenize_prompt(prompt | {"prompt": text}, params)
        shield, rendered = chat
        if shield.is_empty:
            return super()._tokenize_prompt(prompt | {"prompt": rendered}, params)
        tokenizer = self.get_tokenizer()
        ids = shield.encode(tokenizer, rendered)
        if params.add_special_tokens:
            ids = _with_special_tokens(tokenizer, ids)
        return self._build_tokens_prompt(ids, prompt)

    def _process_tokens(self, prompt: Any, *, skip_mm_cache: bool = False) -> Any:
        self._check_images(prompt)
        return super()._process_tokens(prompt, skip_mm_cache=skip_mm_cache)

    async def _process_tokens_async(self, prompt: Any, *, skip_mm_cache: bool = False) -> Any:
        self._check_images(prompt)
        return await super()._process_tokens_async(prompt, skip_mm_cache=skip_mm_cache)

    def _check_images(self, prompt: Any) -> None:
        """See that a prompt marks as many images as it is given.

        Raises:
            PlaceholderError: it does not.
        """
        marked = list(prompt["prompt_token_ids"]).count(self.processor.image_token_id)
        images = (prompt.get("multi_modal_data") or {}).get("image")
        if images is None:
            given = 0
        elif isinstance(images, list | tuple) or getattr(images, "ndim", 3) == 4:
            given = len(images)
        else:
            given = 1
        if marked != given:
            raise PlaceholderError(
                f"The prompt marks {marked} images ({IMAGE_TOKEN} or {RELEASED_IMAGE_TOKEN}), "
                f"but {given} are given."
            )


def _given(images: Any, uuids: Any) -> Prompt:
    """The multimodal part of a prompt."""
    prompt: Prompt = {}
    if images is not None:
        prompt["multi_modal_data"] = images
    if uuids is not None:
        prompt["multi_modal_uuids"] = uuids
    return prompt


def _plain_parts(conversation: Any) -> Messages:
    """The conversation with parts of nothing but their type and text.

    vLLM passes on whatever else a client puts into a part, and templates look for an ``image``.
    """
    messages = []
    for message in conversation:
        content = message.get("content")
        if isinstance(content, list):
            content = [
                {key: part[key] for key in ("type", "text", "name") if key in part}
                for part in content
            ]
        messages.append(dict(message) | {"content": content})
    return messages


def _with_special_tokens(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """Token ids with what the tokenizer puts around a text (a start of sequence, say)."""
    bare: list[int] = tokenizer.encode("a", add_special_tokens=False)
    whole: list[int] = tokenizer.encode("a", add_special_tokens=True)
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start] + ids + whole[start + len(bare) :]
    return ids
