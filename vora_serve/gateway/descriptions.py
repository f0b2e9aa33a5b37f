"""What each field of the HTTP API means, for ``/openapi.json`` and the reference page.

By field name, since the same field means the same in every API here; ``Schema.field`` where not.
"""

from __future__ import annotations

from typing import Any

FIELDS: dict[str, str] = {
    "add_generation_prompt": "End the prompt with the head of an assistant's message.",
    "add_special_tokens": "Add the tokenizer's own special tokens to the text.",
    "allowed_token_ids": "Only these tokens may be generated.",
    "annotations": "Accepted in an earlier answer that is sent back; not used.",
    "arguments": "The call's arguments, as JSON text.",
    "background": "Only `false`: answers are not computed in the background.",
    "bad_words": "Words that the answer must not contain.",
    "best_of": "Only as large as `n`: candidates are not ranked.",
    "cache_salt": "Separates prefix caches: only requests with the same salt share one.",
    "call_id": "The id that joins a call with its output.",
    "choice": "The answer is one of these texts.",
    "code": "A short name of the error for programs; null where there is none.",
    "content": "The message's text, or a list of parts: text, images and files.",
    "context": "What the document is about; given to the model with it.",
    "continue_final_message": "Continue the last message instead of answering it.",
    "continuous_usage_stats": "Send the usage with every event of the stream.",
    "created": "When it was made, in seconds since 1970; 0 where not known.",
    "ctx": "Details of the error.",
    "data": "The content, in base64.",
    "description": "What it is for, in words for the model.",
    "detail": "How closely to look: `low` bounds the image's pixels; see `images.detail_pixels`.",
    "disable_parallel_tool_use": "Call at most one tool in an answer.",
    "echo": "Begin the answer with the prompt.",
    "error": "What went wrong.",
    "file": "The file: `file_data`, `file_url` or `file_id`.",
    "file_data": "The file as base64 or a `data:` URL.",
    "file_id": "The id of an uploaded file.",
    "file_url": "An http(s) URL of the file, which the gateway fetches under its rules.",
    "filename": "The file's name, for messages about it.",
    "folder": "The folder's name inside the engines' `adapters_folder`.",
    "format": "The form that the answer, or a tool's input, has to have.",
    "frequency_penalty": "-2 to 2. Above 0, tokens become less likely each time they occur.",
    "function": "The function that is described, called or chosen.",
    "grammar": "The answer follows this grammar (EBNF).",
    "id": "Its id.",
    "ignore_eos": "Generate on past the model's end-of-text token, up to the longest answer.",
    "image_url": "The image: an http(s) or `data:` URL, alone or as `{url, detail}`.",
    "include": "Further data to return with the answer.",
    "include_obfuscation": "Accepted; events are not padded.",
    "include_stop_str_in_output": "Leave the stop sequence at the end of the answer.",
    "include_usage": "Send an event with the usage at the end of the stream.",
    "input": "What to answer: text, or a list of messages, calls and outputs.",
    "input_schema": "The JSON schema of the tool's input.",
    "instructions": "A system message for this request.",
    "is_error": "Whether the tool failed.",
    "json": "The answer follows this JSON schema.",
    "json_object": "The answer is a JSON object.",
    "json_schema": "The name and the JSON schema that the answer follows.",
    "length_penalty": "For beam search, which is not offered: only the default changes nothing.",
    "loc": "Where in the request.",
    "logit_bias": "By token id: a number from -100 to 100 that is added to the token's logit.",
    "logprob_token_ids": "Tokens whose log-probabilities are returned at each position.",
    "logprobs": "Return the log-probabilities of the answer's tokens.",
    "max_completion_tokens": "The longest answer, in tokens.",
    "max_model_len": "The model's context in tokens: prompt, images and answer; null if unknown.",
    "max_output_tokens": "The longest answer, in tokens.",
    "max_pixels": "Larger images are shrunk to this many pixels; for models of native resolution.",
    "max_tokens": "The longest answer, in tokens.",
    "media_type": "The content's media type, such as `image/png`.",
    "message": "One sentence for people.",
    "messages": "The conversation so far, the oldest message first.",
    "min_p": "0 to 1. Tokens less likely than this share of the most likely one are left out.",
    "min_pixels": "Smaller images grow to this many pixels; for models of native resolution.",
    "min_tokens": "The shortest answer, in tokens.",
    "mm_processor_kwargs": "Image bounds for the whole request: `min_pixels`, `max_pixels`.",
    "modalities": "Only `[text]`: answers are text.",
    "model": "The name of a served model, as `/v1/models` lists it.",
    "msg": "What is wrong.",
    "n": "How many answers to generate.",
    "name": "Its name.",
    "object": "What kind of object this is.",
    "output": "What the call gave.",
    "output_config": "The form that the answer has to have.",
    "output_format": "The form that the answer has to have.",
    "owned_by": "Who serves the model.",
    "parallel_tool_calls": "Whether an answer may call several tools.",
    "param": "The request's field that is at fault; null where none is.",
    "parameters": "The JSON schema of the function's arguments.",
    "presence_penalty": "-2 to 2. Above 0, tokens that have occurred become less likely.",
    "prompt": "The text to continue, or a list of texts or of token ids.",
    "prompt_logprobs": "Log-probabilities to return for each token of the prompt.",
    "refusal": "The text of a refusal in an earlier answer.",
    "regex": "The answer matches this regular expression.",
    "repetition_penalty": "Above 1, tokens that have occurred become less likely; 1 changes none.",
    "request_id": "The request's id, as in the header `request-id` and in the log.",
    "response_format": "The form that the answer has to have.",
    "return_token_ids": "Return the token ids of prompt and answer.",
    "return_token_strs": "Return each token's text beside its id.",
    "return_tokens_as_token_ids": "Name tokens as `token_id:N` in log-probabilities.",
    "role": "Who speaks.",
    "schema": "The JSON schema that the answer follows.",
    "seed": "Makes sampling repeat, as far as the engine allows.",
    "signature": "Accepted in an earlier answer that is sent back; not used.",
    "skip_special_tokens": "Leave special tokens out of the answer's text.",
    "source": "Where the content is: inline or at a URL.",
    "spaces_between_special_tokens": "Put spaces between special tokens in the text.",
    "status": "Accepted in an item that is sent back; not used.",
    "stop": "Texts that end the answer, and are left out of it.",
    "stop_sequences": "Texts that end the answer, and are left out of it.",
    "stop_token_ids": "Tokens that end the answer.",
    "stream": "Send the answer as server-sent events while it is generated.",
    "stream_options": "What a stream holds besides the answer.",
    "strict": "Accepted; whether arguments follow the schema depends on the engine.",
    "structured_outputs": "The form that the answer has to have, by one of these means.",
    "suffix": "Text after the gap; only where the model fills gaps.",
    "system": "A system message for this request.",
    "temperature": "0 takes the most likely token; more varies answers more.",
    "text": "The text.",
    "thinking": "Thinking of an earlier answer, which is not given to the model again.",
    "title": "The document's title; given to the model with it.",
    "tool_call_id": "The id of the call that this answers.",
    "tool_calls": "Calls that an earlier answer made.",
    "tool_choice": "Which tools may or must be called.",
    "tool_use_id": "The id of the call that this answers.",
    "tools": "Functions that the model may call.",
    "top_k": "Only this many most likely tokens are drawn from; -1 or 0: all.",
    "top_logprobs": "Alternatives to return for each token of the answer.",
    "top_p": "Only the most likely tokens that make up this probability are drawn from.",
    "truncation": "`disabled`; `auto` is dropped, as an input that is too long is refused.",
    "type": "Which kind of part, item or object this is.",
    "url": "An http(s) or `data:` URL.",
    "user": "Accepted, and not used: limits go by the key.",
    "vora": "How images become tokens: `image` has the geometry, `kv_bytes_per_token` the memory "
    "that each takes; null where the checkpoint's files are out of reach.",
}

SCHEMAS: dict[str, str] = {
    "ErrorObject.type": "The error's kind, as in OpenAI's API, such as `invalid_request_error`.",
    "MessagesErrorObject.type": "The error's kind, as in Anthropic's API.",
    "ModelList.data": "The served models.",
    "HTTPValidationError.detail": "What is wrong, field by field.",
    "ThinkingBlock.data": "Accepted in an earlier answer that is sent back; not used.",
    "JSONSchemaFormat.strict": "Accepted: answers always follow the schema.",
    "SearchResultBlock.source": "Where the result comes from; given to the model with it.",
}

PARAMETERS: dict[str, str] = {
    "model": "The name of a served model.",
    "response_id": "The id of a kept response.",
    "limit": "How many items to return.",
    "order": "`asc` or `desc`, by time.",
    "after": "Return what follows the item with this id.",
    "index": "An engine's place in the list of upstreams, from 0.",
    "name": "The vision adapter's model name.",
    "timeout_s": "Seconds that the adapter's requests may take; after that it stays loaded.",
}


def describe(document: dict[str, Any]) -> None:
    """Add a description to each field and parameter of an OpenAPI document that has none."""
    for name, schema in document.get("components", {}).get("schemas", {}).items():
        _walk(schema, name)
    for operations in document["paths"].values():
        for operation in operations.values():
            _walk(operation, "")
            for parameter in operation.get("parameters", []):
                _add(parameter, PARAMETERS.get(parameter["name"]))


def _walk(node: Any, schema: str) -> None:
    if isinstance(node, list):
        for each in node:
            _walk(each, schema)
    elif isinstance(node, dict):
        properties = node.get("properties")
        for name, field in properties.items() if isinstance(properties, dict) else ():
            own = SCHEMAS.get(f"{schema.rpartition('_')[2]}.{name}")
            _add(field, own or FIELDS.get(name))
        for each in node.values():
            _walk(each, schema)


def _add(field: dict[str, Any], words: str | None) -> None:
    if words is not None and not field.get("description"):
        field["description"] = words
