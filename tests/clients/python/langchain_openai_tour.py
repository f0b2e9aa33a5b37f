"""langchain-openai: ChatOpenAI."""

from __future__ import annotations

from langchain_openai import ChatOpenAI
from langchain_tour import take
from tour import KEY, MODEL, V1

if __name__ == "__main__":
    take(
        ChatOpenAI(base_url=V1, api_key=KEY, model=MODEL, temperature=0, max_tokens=256),
        "json_schema",
    )
