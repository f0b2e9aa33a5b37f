"""Ask about pictures with OpenAI's client, streamed.

python ask.py scene.png [more.png ...] --question "What do you see?"
"""

import argparse

from openai import OpenAI
from pictures import API_KEY, BASE_URL, MODEL, picture_url

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("picture", nargs="+")
parser.add_argument("--question", default="What do you see?")
arguments = parser.parse_args()

client = OpenAI(base_url=BASE_URL, api_key=API_KEY)
content = [
    {"type": "image_url", "image_url": {"url": picture_url(each)}} for each in arguments.picture
]
content.append({"type": "text", "text": arguments.question})
stream = client.chat.completions.create(
    model=MODEL,
    messages=[{"role": "user", "content": content}],
    temperature=0,
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    if chunk.usage:
        # How many of the prompt's tokens were pictures is beyond OpenAI's own fields.
        details = chunk.usage.prompt_tokens_details.model_dump()
        print(
            f"\n[{chunk.usage.prompt_tokens} tokens in, {details['image_tokens']} of pictures, "
            f"{chunk.usage.completion_tokens} out]"
        )
