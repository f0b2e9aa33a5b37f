"""Requests: their schemas, the allowlist of fields, and parsing."""

from vora_serve.gateway.schemas.parse import SCHEMAS, Kind, ParsedRequest, parse_request

__all__ = ["SCHEMAS", "Kind", "ParsedRequest", "parse_request"]
