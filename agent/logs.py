"""Owns how log lines look: coloured columns on a terminal, one JSON object a line otherwise."""

from __future__ import annotations

import enum
import logging
import sys
from typing import TextIO

import structlog
from structlog.typing import Processor


class LogFormat(enum.Enum):
    """AUTO: console on a terminal, JSON otherwise."""

    AUTO = "auto"
    CONSOLE = "console"
    JSON = "json"


class LogLevel(enum.Enum):
    """The least severe level that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def number(self) -> int:
        return logging.getLevelNamesMapping()[self.name]


# Libraries that tell more than an operator wants to know below WARNING.
_CHATTY = ("aiohttp", "asyncio", "pyroute2")


def configure(
    level: LogLevel = LogLevel.INFO,
    log_format: LogFormat = LogFormat.AUTO,
    stream: TextIO | None = None,
) -> None:
    """Send all logs, also those of libraries, to ``stream`` (None: standard error)."""
    out = sys.stderr if stream is None else stream
    console = log_format is LogFormat.CONSOLE or (log_format is LogFormat.AUTO and out.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(
            fmt="%H:%M:%S.%f" if console else "iso", utc=not console, key="time"
        ),
    ]
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            # A library's own line has no structure: where it comes from is the best there is.
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(console, colours=out.isatty()),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.number)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(level.number, logging.WARNING))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.processors.StackInfoRenderer(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,  # module-level loggers follow a later configure()
    )


def _renderers(console: bool, *, colours: bool) -> list[Processor]:
    if console:
        return [
            structlog.dev.ConsoleRenderer(
                colors=colours,
                timestamp_key="time",
                # Locals in a traceback would be pages, and could hold what nobody may read.
                exception_formatter=structlog.dev.plain_traceback,
            )
        ]
    return [
        structlog.processors.format_exc_info,
        # Paths, addresses and enums as people write them, never a failed log line.
        structlog.processors.JSONRenderer(default=str),
    ]
