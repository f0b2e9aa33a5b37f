"""langchain-anthropic: ChatAnthropic."""

from __future__ import annotations

from langchain_anthropic import ChatAnthropic
from langchain_tour import take
from tour import BASE, KEY, MODEL

if __name__ == "__main__":
    take(
        ChatAnthropic(base_url=BASE, api_key=KEY, model=MODEL, temperature=0, max_tokens=256),
        "json_schema",
    )
