"""Logs are columns on a terminal and JSON elsewhere."""

import io
import ipaddress
import json
import logging

import pytest
import structlog

from agent import logs

log = structlog.get_logger()  # as modules do, before logs are configured


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def _restored():
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_one_json_object_a_line_when_not_on_a_terminal():
    out = io.StringIO()
    logs.configure(stream=out)
    log.info("backend_down", backend="chat/gpu-1", reason="connection\nrefused")
    (line,) = lines(out)
    assert line.pop("time").endswith("Z")
    assert line == {
        "event": "backend_down",
        "level": "info",
        "backend": "chat/gpu-1",
        "reason": "connection\nrefused",
    }


def test_console_on_a_terminal():
    out = Terminal()
    logs.configure(stream=out)
    log.info("backend_down", backend="chat/gpu-1")
    assert "backend_down" in out.getvalue()
    assert "\x1b[" in out.getvalue()
    with pytest.raises(json.JSONDecodeError):
        json.loads(out.getvalue())


def test_console_without_colours_when_asked_for_in_a_file():
    out = io.StringIO()
    logs.configure(log_format=logs.LogFormat.CONSOLE, stream=out)
    log.info("started", version="1")
    assert "\x1b[" not in out.getvalue()
    assert "version=1" in out.getvalue()


def test_level_hides_what_is_below():
    out = io.StringIO()
    logs.configure(logs.LogLevel.WARNING, stream=out)
    log.info("quiet")
    log.warning("loud")
    assert [line["event"] for line in lines(out)] == ["loud"]


def test_a_later_configuration_replaces_the_earlier():
    first, second = io.StringIO(), io.StringIO()
    logs.configure(stream=first)
    log.info("one")
    logs.configure(logs.LogLevel.DEBUG, stream=second)
    log.debug("two")
    assert [line["event"] for line in lines(first)] == ["one"]
    assert [line["event"] for line in lines(second)] == ["two"]


def test_library_logs_have_the_same_form_and_say_where_they_come_from():
    out = io.StringIO()
    logs.configure(logs.LogLevel.DEBUG, stream=out)
    logging.getLogger("asyncio").info("hidden")
    logging.getLogger("asyncio").warning("slow %s", "callback")
    (line,) = lines(out)
    assert (line["event"], line["level"], line["logger"]) == ("slow callback", "warning", "asyncio")


@pytest.mark.parametrize("make", [io.StringIO, Terminal])
def test_exceptions_are_logged_with_their_traceback_and_no_local_values(make):
    out = make()
    logs.configure(stream=out)
    hidden = "unspeakable"
    try:
        raise ValueError(f"of {len(hidden)} letters")
    except ValueError:
        log.exception("failed")
    assert "ValueError: of 11 letters" in out.getvalue()
    assert "test_logs.py" in out.getvalue()
    assert "unspeakable" not in out.getvalue()


def test_values_json_does_not_know_become_text():
    out = io.StringIO()
    logs.configure(stream=out)
    log.info("vip_added", address=ipaddress.ip_address("192.0.2.1"))
    assert lines(out)[0]["address"] == "192.0.2.1"


def test_whoever_hears_the_log_hears_also_what_is_not_written():
    out, heard = io.StringIO(), []
    logs.configure(logs.LogLevel.ERROR, stream=out)
    with logs.log_listener(lambda level, event, fields: heard.append((level, event, dict(fields)))):
        log.info("backend", backend="chat/gpu-1", why=None)
        log.debug("nothing")
        log.log(logging.WARNING, "service", service="chat")
        try:
            raise ValueError("of ours")
        except ValueError:
            log.exception("broke")
        log.error("later", exc_info=OSError("there"))
    log.error("afterwards")
    assert heard == [
        ("info", "backend", {"backend": "chat/gpu-1", "why": None}),
        ("warning", "service", {"service": "chat"}),
        ("error", "broke", {"problem": "ValueError('of ours')"}),
        ("error", "later", {"problem": "OSError('there')"}),
    ]
    assert [line["event"] for line in lines(out)] == ["broke", "later", "afterwards"]
    assert "Traceback" in lines(out)[0]["exception"]
