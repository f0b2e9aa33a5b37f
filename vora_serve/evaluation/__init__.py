"""Measuring a served model's answers over HTTP. Imports neither torch nor the architecture."""

from vora_serve.accuracy import Row, draw_table, summarise
from vora_serve.evaluation.client import Endpoint, ask_all

__all__ = ["Endpoint", "Row", "ask_all", "draw_table", "summarise"]
