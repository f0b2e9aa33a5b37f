"""LangChain: an image in a message, streamed.

python langchain_chat.py scene.png
"""

import sys

from images import API_KEY, BASE_URL, MODEL, show

try:
    from langchain_core.messages import HumanMessage
    from langchain_openai import ChatOpenAI
except ModuleNotFoundError as error:
    sys.exit(f"{error.name} is not installed. Run: make setup")

if len(sys.argv) != 2:
    sys.exit("usage: python langchain_chat.py IMAGE")
model = ChatOpenAI(base_url=BASE_URL, api_key=API_KEY, model=MODEL, temperature=0)
message = HumanMessage(content=show(sys.argv[1], "How many shapes are there?")["content"])
for chunk in model.stream([message]):
    print(chunk.content, end="", flush=True)
print()
