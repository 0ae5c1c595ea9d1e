"""Structured logs: JSON where nobody watches, coloured lines in a terminal; no prompts, no keys."""

from __future__ import annotations

import logging
import sys

import structlog


def configure_logs(level: str) -> None:
    """Every logger of the process, structlog's and the standard library's, writes to standard error."""
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=_rendering())
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def _rendering() -> list[structlog.types.Processor]:
    drop = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    if sys.stderr.isatty():
        # Not the renderer's own tracebacks: they would show local variables, prompts among them.
        return [drop, structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    return [drop, structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
