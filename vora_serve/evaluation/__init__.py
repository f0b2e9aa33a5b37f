"""Measuring a served model's answers over HTTP. Imports neither torch nor the architecture."""

from vora_serve.evaluation.client import Endpoint, ask_all
from vora_serve.evaluation.table import Row, draw_table, summarise

__all__ = ["Endpoint", "Row", "ask_all", "draw_table", "summarise"]
