"""Ask about images with OpenAI's client, streamed.

python ask.py scene.png [more.png ...] --question "What do you see?"
"""

import argparse

from images import API_KEY, BASE_URL, MODEL, image_url
from openai import OpenAI

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("image", nargs="+")
parser.add_argument("--question", default="What do you see?")
arguments = parser.parse_args()

client = OpenAI(base_url=BASE_URL, api_key=API_KEY)
content = [{"type": "image_url", "image_url": {"url": image_url(each)}} for each in arguments.image]
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
        # How many of the prompt's tokens were images is beyond OpenAI's own fields.
        details = chunk.usage.prompt_tokens_details.model_dump()
        print(
            f"\n[{chunk.usage.prompt_tokens} tokens in, {details['image_tokens']} of images, "
            f"{chunk.usage.completion_tokens} out]"
        )
