"""LlamaIndex: an image and a question as blocks of a chat message.

python llamaindex_chat.py scene.png
"""

import sys

from images import API_KEY, BASE_URL, MODEL, image_bytes

try:
    from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
    from llama_index.llms.openai_like import OpenAILike
except ModuleNotFoundError as error:
    sys.exit(
        f"{error.name} is not installed. In an environment of its own, run: "
        "pip install llama-index-llms-openai-like"
    )

if len(sys.argv) != 2:
    sys.exit("usage: python llamaindex_chat.py IMAGE")
model = OpenAILike(
    model=MODEL, api_base=BASE_URL, api_key=API_KEY, is_chat_model=True, temperature=0
)
blocks = [
    ImageBlock(image=image_bytes(sys.argv[1]), image_mimetype="image/png"),
    TextBlock(text="How many shapes are there?"),
]
print(model.chat([ChatMessage(role="user", blocks=blocks)]).message.content)
