"""A chat with a call and an image, in the usual form, to be put in other ones."""

from __future__ import annotations

from tests.vora_serve.gateway.conftest import make_image
from tests.vora_serve.gateway.test_chat import data_url

URL = data_url(make_image(4, 4))
ASK = {"role": "user", "content": "Weather?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "18"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
OTHER = {"type": "function", "function": {"name": "other"}}
STRICT = {"name": "weather", "parameters": SCHEMA, "strict": True}
IMAGE = {"type": "image_url", "image_url": {"url": URL}}
