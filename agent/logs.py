"""Owns the format of log lines: coloured columns on a terminal, else one JSON object a line."""

from __future__ import annotations

import contextlib
import enum
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

# If rich is installed, structlog imports it for tracebacks, which we print without it. That would
# cost 0.1 s at each start of every command.
_without_rich = "rich" not in sys.modules
if _without_rich:
    sys.modules["rich"] = None  # type: ignore[assignment]  # importing it fails

import structlog  # noqa: E402
from structlog.typing import EventDict, Processor, WrappedLogger  # noqa: E402

if _without_rich:
    del sys.modules["rich"]

type LogListener = Callable[[str, str, Mapping[str, object]], None]


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


# Libraries that log more below WARNING than an operator wants to know.
_CHATTY = ("aiohttp", "asyncio", "pyroute2")


# Level of an entry by logging method; all other methods are errors.
_LEVELS = {"info": "info", "warning": "warning", "warn": "warning"}


def get_logger() -> Any:
    """Return a logger for the calling module; it follows a later ``configure``."""
    return structlog.get_logger()


def configure(
    level: LogLevel = LogLevel.INFO,
    log_format: LogFormat = LogFormat.AUTO,
    stream: TextIO | None = None,
) -> None:
    """Send all logs, including those of libraries, to ``stream`` (None: standard error)."""
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
            # A library's lines have no structure, so the logger's name is the best we can add.
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


@contextlib.contextmanager
def log_listener(listener: LogListener) -> Iterator[None]:
    """Call ``listener(level, event, fields)`` for each of our lines at level info or above.

    That includes lines that the log level suppresses. It is called in the thread that logs.
    """

    def forward(_logger: WrappedLogger, method: str, line: EventDict) -> EventDict:
        if method != "debug":
            fields = {key: value for key, value in line.items() if key != "event"}
            if cause := fields.pop("exc_info", None):
                fields["problem"] = repr(cause if cause is not True else sys.exception())
            listener(_LEVELS.get(method, "error"), str(line["event"]), fields)
        return line

    before = structlog.get_config()["processors"]
    structlog.configure(processors=[forward, *before])
    try:
        yield
    finally:
        structlog.configure(processors=before)


def _renderers(console: bool, *, colours: bool) -> list[Processor]:
    if console:
        return [
            structlog.dev.ConsoleRenderer(
                colors=colours,
                timestamp_key="time",
                # Locals in a traceback would fill pages, and could contain secrets.
                exception_formatter=structlog.dev.plain_traceback,
            )
        ]
    return [
        structlog.processors.format_exc_info,
        # Write paths, addresses and enums by str(), so that a log line never fails.
        structlog.processors.JSONRenderer(default=str),
    ]
