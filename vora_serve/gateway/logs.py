"""Structured logs on standard error, without prompts, images or keys unless asked."""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import UTC, datetime
from typing import Any

from vora_serve.gateway.settings import LoggingSettings

access_logger = logging.getLogger("vora_serve.gateway.access")


def log_access(fields: dict[str, Any]) -> None:
    """Log one request; without looking for the line of code that logs it, which is this one."""
    record = access_logger.makeRecord(
        access_logger.name, logging.INFO, __file__, 0, "request", (), None
    )
    record.fields = fields
    access_logger.handle(record)


class _JSONFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        now = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = "".join(f" {key}={value}" for key, value in getattr(record, "fields", {}).items())
        text = f"{now} {record.levelname.lower():7} {record.getMessage()}{fields}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


def configure_logging(settings: LoggingSettings) -> None:
    """Send the package's and uvicorn's logs to standard error in the configured form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JSONFormatter() if settings.format == "json" else _TextFormatter())
    for name in ("vora_serve", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(settings.level.upper())
        logger.propagate = False
    # One line a request is the access logger's; uvicorn's own would be a second.
    logging.getLogger("uvicorn.access").disabled = True
    logging.getLogger("uvicorn.error").setLevel("WARNING")
    access_logger.disabled = not settings.access


def logs_are_json() -> bool:
    """Whether logs are configured as JSON, so that nothing else belongs between their lines."""
    handlers = logging.getLogger("vora_serve").handlers
    return any(isinstance(handler.formatter, _JSONFormatter) for handler in handlers)
