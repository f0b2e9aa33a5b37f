"""An image and a tool: the model has to call it, we carry it out, and its result goes back.

python tools.py scene.png
"""

import json
import sys

from images import API_KEY, BASE_URL, MODEL, show
from openai import OpenAI

PRICES = {"one": 5, "two": 9, "three": 12, "four": 14}
TOOL = {
    "type": "function",
    "function": {
        "name": "price_of",
        "description": "What so many shapes cost.",
        "strict": True,  # the arguments are then held to the schema while they are generated
        "parameters": {
            "type": "object",
            "properties": {"count": {"type": "string", "enum": list(PRICES)}},
            "required": ["count"],
            "additionalProperties": False,
        },
    },
}

if len(sys.argv) != 2:
    sys.exit("usage: python tools.py IMAGE")
client = OpenAI(base_url=BASE_URL, api_key=API_KEY)
messages = [show(sys.argv[1], "How many shapes are there?")]
first = client.chat.completions.create(
    model=MODEL,
    messages=messages,
    tools=[TOOL],
    # Named, so that even a model that never learnt about tools must call it.
    tool_choice={"type": "function", "function": {"name": "price_of"}},
    parallel_tool_calls=False,
    temperature=0,
    max_tokens=200,
)
call = first.choices[0].message.tool_calls[0]
given = json.loads(call.function.arguments)
price = PRICES[given["count"]]
print(f"{call.function.name}({given}) = {price}")

messages += [
    first.choices[0].message.model_dump(exclude_none=True),
    {"role": "tool", "tool_call_id": call.id, "content": json.dumps({"price": price})},
]
second = client.chat.completions.create(
    model=MODEL, messages=messages, tools=[TOOL], tool_choice="none", temperature=0, max_tokens=32
)
print(second.choices[0].message.content)
