"""An answer in the shape of a JSON schema: what cannot be parsed is never generated.

python structured.py scene.png
"""

import sys
from typing import Literal

from images import API_KEY, BASE_URL, MODEL, show
from openai import OpenAI
from pydantic import BaseModel


class Scene(BaseModel):
    """What the image shows."""

    shapes: Literal["one", "two", "three", "four"]


if len(sys.argv) != 2:
    sys.exit("usage: python structured.py IMAGE")
client = OpenAI(base_url=BASE_URL, api_key=API_KEY)
schema = {**Scene.model_json_schema(), "additionalProperties": False}
answer = client.chat.completions.create(
    model=MODEL,
    messages=[show(sys.argv[1], "How many shapes are there?")],
    temperature=0,
    max_tokens=64,
    response_format={
        "type": "json_schema",
        "json_schema": {"name": "scene", "schema": schema, "strict": True},
    },
)
scene = Scene.model_validate_json(answer.choices[0].message.content)
print(scene.model_dump_json())
