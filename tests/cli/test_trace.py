"""lbctl trace: what is asked of the agent, what is shown, how it ends."""

from __future__ import annotations

import contextlib
import json
import signal
import socketserver
import threading
from collections.abc import Iterator
from datetime import UTC, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from agent.api.client import Client
from agent.api.eventlines import REASONS, Stamps, line, summary
from agent.errors import AgentUnreachableError, ApiError
from agent.state.events import DROP_REASONS
from lbctl.environment import Environment

ALIVE = {"lost_in_ring": 0, "lost_by_client": 0}
PICK: dict[str, Any] = {
    "event": "pick",
    "at": "2026-01-02T03:04:05.123456Z",
    "protocol": "tcp",
    "client": "10.0.0.9",
    "client_port": 40000,
    "vip": "192.0.2.1",
    "port": 443,
    "length_bytes": 60,
    "tcp_flags": "S",
    "service": "web",
    "backend": "b2",
    "backend_address": "10.1.0.2",
    "scheduler": "least-load",
    "reason": None,
    "fate": None,
    "flow_state": None,
    "waited_bytes": None,
    "waited_us": None,
}
DROP = PICK | {
    "event": "drop",
    "reason": "no-backend",
    "fate": "dropped",
    "backend": None,
    "backend_address": None,
    "scheduler": None,
}
ANSWER = PICK | {"event": "answer", "tcp_flags": ".", "waited_bytes": 4321, "waited_us": 812_400}
PACKET = PICK | {
    "event": "packet",
    "length_bytes": 1460,
    "flow_state": "established",
    "tcp_flags": "P.",
}


def words(event: dict[str, Any], numeric: bool = False) -> str:
    return line(event, Stamps(0, UTC), numeric)


def test_lines_read_as_tcpdump_s():
    assert words(PICK) == (
        "03:04:05.123456 IP 10.0.0.9.40000 > 192.0.2.1.443 tcp S: "
        "new flow of web goes to b2 (least-load)"
    )
    assert words(DROP) == (
        "03:04:05.123456 IP 10.0.0.9.40000 > 192.0.2.1.443 tcp S: "
        "dropped: no usable backend (no-backend) [web]"
    )
    assert words(ANSWER) == (
        "03:04:05.123456 IP 10.0.0.9.40000 > 192.0.2.1.443 tcp: "
        "answered after 812 ms: 4,321 request bytes waited [web/b2]"
    )


@pytest.mark.parametrize(
    ("event", "shown"),
    [
        (PACKET, "tcp P.: 1,460 bytes go to b2, flow established [web]"),
        (PACKET | {"event": "close", "tcp_flags": "F."}, "FIN ends the flow to b2, it was"),
        (PACKET | {"event": "close", "tcp_flags": "R"}, "tcp R: RST ends the flow to b2"),
        (PICK | {"backend": None}, "new flow of web goes to a backend that was removed"),
        (DROP | {"reason": "fragment", "fate": "passed"}, "passed to the host: the first fragment"),
        (DROP | {"reason": "too-big", "fate": "refused"}, "refused: does not fit"),
        (DROP | {"reason": "reason-99"}, "dropped: unknown reason (reason-99)"),
        (DROP | {"service": None, "reason": "no-flow"}, "(no-flow)"),
        (ANSWER | {"waited_us": 412}, "after 412 us"),
        (ANSWER | {"waited_us": 8123}, "after 8.12 ms"),
        (ANSWER | {"waited_us": 99_960}, "after 100 ms"),
        (ANSWER | {"waited_us": 999_600}, "after 1.00 s"),
        (ANSWER | {"waited_us": 81_240_000}, "after 81.2 s"),
    ],
)
def test_lines_say(event, shown):
    assert shown in words(event)


def test_reply_goes_from_the_vip_to_the_client():
    assert " IP 192.0.2.1.443 > 10.0.0.9.40000 tcp P.: 1,460 bytes come from b2" in words(
        PACKET | {"event": "reply"}
    )


def test_what_has_no_ports_shows_none_and_ipv6_is_said():
    ping = DROP | {
        "client": "2001:db8::9",
        "vip": "fd00::1",
        "client_port": None,
        "port": None,
        "protocol": "icmp6",
        "tcp_flags": None,
    }
    assert " IP6 2001:db8::9 > fd00::1 icmp6: dropped" in words(ping)


def test_numeric_shows_addresses_of_backends():
    assert words(PICK, numeric=True).endswith("goes to 10.1.0.2 (least-load)")


def test_every_reason_has_its_words():
    assert set(REASONS) == set(DROP_REASONS)


@pytest.mark.parametrize(
    ("style", "first", "second"),
    [
        (0, "05:04:05.123456 ", "05:04:06.623456 "),
        (1, "", ""),
        (2, "1767323045.123456 ", "1767323046.623456 "),
        (3, "00:00:00.000000 ", "00:00:01.500000 "),
        (4, "2026-01-02 05:04:05.123456 ", "2026-01-02 05:04:06.623456 "),
        (5, "00:00:00.000000 ", "00:00:01.500000 "),
        (9, "00:00:00.000000 ", "00:00:01.500000 "),
    ],
)
def test_times_are_written_as_asked(style, first, second):
    stamps = Stamps(style, timezone(timedelta(hours=2)))
    assert stamps.stamp("2026-01-02T03:04:05.123456Z") == first
    assert stamps.stamp("2026-01-02T03:04:06.623456Z") == second


def test_time_since_the_line_before_or_since_the_first():
    times = [f"2026-01-02T03:04:0{second}.000000Z" for second in (5, 6, 8, 7)]
    before, since = Stamps(3, UTC), Stamps(5, UTC)
    assert [before.stamp(at).strip() for at in times] == [
        "00:00:00.000000",
        "00:00:01.000000",
        "00:00:02.000000",
        "-00:00:01.000000",
    ]
    assert [since.stamp(at).strip() for at in times][2:] == ["00:00:03.000000", "00:00:02.000000"]


def test_summary_says_what_was_lost_and_why():
    assert summary(1, 0, 0, filtered=True) == "1 event, 0 lost"
    assert summary(12, 3000, 0, filtered=False) == (
        "12 events, 3,000 lost (3,000 because the ring was full)"
    )
    assert summary(12, 1, 2, filtered=True).endswith(
        "3 lost (1 because the ring was full, before the filter; "
        "2 because they were not read fast enough)"
    )


def test_follows_until_the_count(agent, run):
    agent.traces = [[ALIVE, PICK, DROP, ANSWER]]
    result = run("trace", "-c", "2", "-t")
    assert result.code == 0
    assert result.out.splitlines() == [line(PICK, Stamps(1), False), line(DROP, Stamps(1), False)]
    assert result.err.splitlines() == ["following; Ctrl-C ends", "2 events, 0 lost"]
    assert agent.queries == [("/v1/trace", {})]


def test_options_and_expression_are_asked_of_the_agent(agent, run):
    agent.traces = [[ALIVE, PICK]]
    run("trace", "--drops", "--packets", "--sample", "64", "tcp", "and", "(port 80)", "-c1")
    assert agent.queries == [
        (
            "/v1/trace",
            {"kind": "drop,packet,reply", "sample": "64", "filter": "tcp and (port 80)"},
        )
    ]


def test_json_is_a_line_each(agent, run):
    agent.traces = [[ALIVE, PICK, DROP]]
    result = run("trace", "-o", "json", "-c", "2")
    assert [json.loads(text) for text in result.out.splitlines()] == [PICK, DROP]


def test_yaml_is_a_document_each(agent, run):
    agent.traces = [[ALIVE, PICK, DROP]]
    result = run("trace", "-o", "yaml", "-c", "2")
    assert result.out.startswith("---\nevent: pick\n")
    assert result.out.count("---\n") == 2


def test_drops_are_red_on_a_terminal(agent, run):
    agent.traces = [[ALIVE, DROP, PICK]]
    shown = run("trace", "-c", "2", colour=True).out.splitlines()
    assert shown[0].startswith("\x1b[31m")
    assert "\x1b" not in shown[1]


def test_what_was_lost_is_summed_over_agents_that_restart(agent, run):
    agent.traces = [
        [ALIVE, PICK, {"lost_in_ring": 5, "lost_by_client": 1}],
        [ALIVE, {"lost_in_ring": 2, "lost_by_client": 0}, DROP],
    ]
    waits: list[float] = []
    result = run("trace", "-c", "2", sleep=waits.append)
    assert result.code == 0
    assert result.err.splitlines() == [
        "following; Ctrl-C ends",
        "the agent ended it; trying again every 1 s",
        "following again",
        "2 events, 8 lost (7 because the ring was full; 1 because they were not read fast enough)",
    ]
    assert waits == [1.0]


def test_an_agent_that_stays_away_is_waited_for_and_said_once(agent, run):
    agent.traces = [[ALIVE, PICK]]

    def wait(_seconds: float) -> None:
        waits.append(agent.socket.exists())
        if len(waits) == 1:
            agent.socket.rename(f"{agent.socket}.away")
        if len(waits) == 3:
            Path(f"{agent.socket}.away").rename(agent.socket)
            agent.traces = [[ALIVE, DROP]]

    waits: list[bool] = []
    result = run("trace", "-c", "2", sleep=wait)
    assert waits == [True, False, False]
    assert result.err.count("the agent ended it") == 1
    assert result.err.splitlines()[-2:] == ["following again", "2 events, 0 lost"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_with_the_summary(agent, run, number):
    agent.traces = [[ALIVE, PICK]]
    before = signal.getsignal(signal.SIGTERM)
    result = run("trace", sleep=lambda _: signal.raise_signal(number))
    assert (result.code, result.err.splitlines()[-1]) == (0, "1 event, 0 lost")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_line_that_was_read_is_counted(agent, run, monkeypatch):
    agent.traces = [[ALIVE, PICK, PICK]]
    write = Environment.write

    def end_it(self: Environment, text: str) -> None:
        write(self, text)
        signal.raise_signal(signal.SIGINT)  # as a reader does who has what it waited for

    monkeypatch.setattr(Environment, "write", end_it)
    result = run("trace")
    assert (result.code, result.err.splitlines()[-1]) == (0, "1 event, 0 lost")


def test_agent_that_is_not_there_is_said_at_once_and_without_a_summary(run):
    result = run("trace")
    assert result.code == 3
    assert "no agent" in result.err
    assert "lost" not in result.err


def test_refusal_of_the_agent_is_shown(agent, run):
    result = run("trace", "service", "nope")  # the fake one knows no such path
    assert result.code == 1
    assert "lost" not in result.err


def test_expression_that_makes_no_sense_is_pointed_at_and_never_sent(agent, run):
    result = run("trace", "host", "10.0.0.1", "and", "prot", "80")
    assert result.code == 2
    assert "did you mean port?" in result.err
    assert "  host 10.0.0.1 and prot 80\n                    ^^^^\n" in result.err
    assert agent.queries == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sample", "64"), "--sample needs --packets"),
        (("--packets", "--sample", "100"), "not a power of two"),
        (("--packets", "--sample", "0"), "0"),
        (("-c", "0"), "0"),
    ],
)
def test_options_that_make_no_sense_are_refused(agent, run, arguments, message):
    result = run("trace", *arguments)
    assert result.code == 2
    assert message in result.err
    assert agent.queries == []


def test_client_hands_out_lines_as_they_come(agent):
    agent.traces = [[ALIVE, PICK]]
    lines = Client(agent.socket).stream("/v1/trace", {"kind": "pick", "sample": None})
    assert list(lines) == [ALIVE, PICK]
    assert agent.queries == [("/v1/trace", {"kind": "pick"})]


def test_client_raises_the_refusal(agent):
    with pytest.raises(ApiError, match="no such path"):
        next(Client(agent.socket).stream("/v1/trace"))


def test_client_without_an_agent_says_so(tmp_path):
    with pytest.raises(AgentUnreachableError):
        next(Client(tmp_path / "none.sock").stream("/v1/trace"))


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'1d\r\n{"event":"pick","length":10}\n\r\n'


@contextlib.contextmanager
def agent_of_one_event(path: Path, ending: bytes | None) -> Iterator[None]:
    """An agent that sends one event and this ending; with None it says nothing more."""
    over = threading.Event()

    class Answer(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(4096)
            with contextlib.suppress(OSError):  # whoever asked has left
                self.request.sendall(HEAD + EVENT + (ending or b""))
            if ending is None:
                over.wait()

    with socketserver.ThreadingUnixStreamServer(str(path), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            over.set()
            server.shutdown()
            thread.join()


def test_agent_that_dies_meanwhile_is_noticed(tmp_path):
    path = tmp_path / "agent.sock"
    with agent_of_one_event(path, b"ff\r\n{"):
        lines = Client(path, timeout_s=60).stream("/v1/trace")
        assert next(lines) == {"event": "pick", "length": 10}
        with pytest.raises(AgentUnreachableError, match="broke off its answer"):
            next(lines)


def test_agent_that_hangs_meanwhile_is_noticed(tmp_path):
    path, heard = tmp_path / "agent.sock", []
    with agent_of_one_event(path, None):
        for timeout_s in (0.2, 4.0, 30.0):  # a slow host needs more until it has the event
            lines = Client(path, timeout_s).stream("/v1/trace")
            with pytest.raises(
                AgentUnreachableError, match=f"did not answer within {timeout_s:g} s"
            ):
                heard.extend(lines)
            if heard:
                break
    assert heard == [{"event": "pick", "length": 10}]
