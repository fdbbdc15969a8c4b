"""Request bytes that wait for their answer, over plain HTTP/1.1: which are counted, what an answer
is, and that nothing stays behind. What talks TLS or HTTP/2 is in
test_waiting_talks.py, how long it took in test_waiting_times.py.
"""

from __future__ import annotations

import pytest

from agent.dataplane.abi import FlowState, Talk
from agent.model import AdminState, Forward, Protocol, Scheduler
from tests.packet.frames import tcp
from tests.packet.harness import Rig, backend, service
from tests.packet.pauses import undisturbed
from tests.packet.talks import (
    ANSWER,
    CONTINUE,
    HEAD,
    LATE_MS,
    MODES,
    POST,
    SERVER,
    Wire,
    opened,
    serve,
)
from tests.packet.wires import Packet

# -- which bytes


@MODES
def test_the_handshake_and_bare_acknowledgements_are_no_request(hooked: Rig, forward):
    wire = opened(hooked, forward)
    wire.client("A")
    assert wire.waiting == 0
    assert wire.talk is Talk.UNKNOWN


@MODES
def test_every_byte_of_a_request_waits_until_the_answer_begins(hooked: Rig, forward):
    wire = opened(hooked, forward)
    for n, flags in enumerate(("A", "A", "PA"), 1):
        wire.ask(POST, flags)
        assert wire.waiting == n * len(POST)
    assert wire.talk is Talk.PLAIN
    wire.after(LATE_MS).gets(ANSWER)
    assert (wire.waiting, wire.answers) == (0, 1)
    wire.gets(b"y" * 1000)
    assert (wire.waiting, wire.answers) == (0, 1), "the rest of it is no other answer"
    wire.ask(POST)
    assert wire.waiting == len(POST)


@MODES
def test_what_comes_again_is_counted_once(hooked: Rig, forward):
    wire = opened(hooked, forward)
    start = wire.seq
    wire.ask(b"0123456789")
    wire.client("PA", b"0123456789", seq=start)
    wire.client("PA", b"34567", seq=start + 3)
    assert wire.waiting == 10
    wire.client("PA", b"56789abc", seq=start + 5)
    assert wire.waiting == 13


@MODES
def test_what_was_overtaken_is_counted_with_what_overtook_it(hooked: Rig, forward):
    wire = opened(hooked, forward)
    start = wire.seq
    wire.client("A", b"x" * 50, seq=start + 100)
    assert wire.waiting == 150
    wire.client("A", b"x" * 100, seq=start)
    assert wire.waiting == 150


@MODES
@pytest.mark.parametrize("payload", [b"", b"\0"])
def test_a_keep_alive_probe_is_no_request(hooked: Rig, forward, payload: bytes):
    wire = opened(hooked, forward).ask(POST)
    wire.client("A", payload, seq=wire.seq - 1)
    assert wire.waiting == len(POST)
    wire.after(LATE_MS).gets(ANSWER)
    wire.client("A", payload, seq=wire.seq - 1)
    assert wire.waiting == 0


@MODES
def test_sequence_numbers_go_round(hooked: Rig, forward):
    wire = opened(hooked, forward, seq=2**32 - 100, sent=2**32 - 60)
    wire.ask(POST)
    assert wire.waiting == len(POST)
    wire.after(LATE_MS).gets(ANSWER)
    assert (wire.waiting, wire.answers) == (0, 1)


@MODES
@pytest.mark.parametrize(
    ("gap", "counted"),
    [
        (0, 9),
        (2**16, 9 + 2**16),
        (2**16 + 1, 9 + 2**16),  # a client says itself what is missing: so much is believed
        (2**20, 9 + 2**16),
        (2**20 + 1, 9),
        (2**24 - 2, 9),  # once weighed as 67,000 connections, for a quarter of an hour
        (2**30, 9),
        (2**31 + 5, 9),
        (-(2**20) - 10, 9),
        (-(2**30), 9),
    ],
)
def test_a_jump_of_the_sequence_number_is_no_request_of_that_size(
    hooked: Rig, forward, gap: int, counted: int
):
    wire = opened(hooked, forward)
    wire.client("PA", b"x" * 9, seq=wire.seq + gap)
    assert wire.waiting == counted


@MODES
@pytest.mark.parametrize(
    "gap", [2**20 + 1000, 2**24, 2**31 - 100, -(2**20) - 1000, -(2**31) + 1000]
)
def test_a_stranger_who_jumps_ahead_hides_no_request_of_the_client(hooked: Rig, forward, gap: int):
    wire = opened(hooked, forward)
    start = wire.seq
    wire.client("PA", b"x", seq=start + gap)
    assert wire.waiting == 1
    wire.client("PA", POST, seq=start)
    assert wire.waiting == 1 + len(POST)
    wire.client("PA", POST, seq=start + len(POST))
    assert wire.waiting == 1 + 2 * len(POST)


@pytest.mark.parametrize("gap", [2**24 - 2, 2**30])
def test_one_packet_takes_no_backend_out_of_the_draws(rig: Rig, gap: int):
    """It weighed as 67,000 connections: 2 of 300 new ones went to that backend."""
    members = [backend(name) for name in "abc"]
    rig.serve(service(*members, scheduler=Scheduler.LEAST_LOAD))
    wire = Wire(rig).open()
    wire.client("PA", b"x", seq=wire.seq + gap)
    for port in range(1000, 1300):
        rig.send(tcp("S", client_port=port))
    assert min(rig.counts(each.name).opened for each in members) > 60


@MODES
@pytest.mark.parametrize("step", [1, 2**16, 2**20, 2**22])
def test_a_flow_holds_a_mebibyte_at_most(hooked: Rig, forward, step: int):
    """Whatever is sent; and all of it goes when the answer begins."""
    wire = opened(hooked, forward)
    start = wire.seq
    for n in range(1, 800):
        wire.client("A", b"x" * 1400, seq=start + n * (1400 + step - 1))
    assert wire.waiting == 2**20
    assert hooked.load_of("a")["waiting"] == 2**20
    wire.after(LATE_MS).gets(ANSWER)
    assert (wire.waiting, wire.answers) == (0, 1)
    assert hooked.load_of("a")["waiting"] == 0


@MODES
def test_requests_in_a_row_wait_together(hooked: Rig, forward):
    """Pipelining: the first answer takes out what had come by then."""
    wire = opened(hooked, forward).ask(POST).ask(POST)
    assert wire.waiting == 2 * len(POST)
    wire.after(LATE_MS).gets(ANSWER)
    assert (wire.waiting, wire.answers) == (0, 1)
    wire.gets(ANSWER)
    assert (wire.waiting, wire.answers) == (0, 1)


@MODES
def test_a_request_that_goes_on_after_the_answer_began_waits_for_more(hooked: Rig, forward):
    wire = opened(hooked, forward).ask(POST)
    wire.after(LATE_MS).gets(ANSWER)
    wire.ask(POST)
    wire.client("A")
    assert wire.waiting == len(POST), "what was acknowledged before is no answer"
    wire.after(LATE_MS).gets(b"more")
    assert (wire.waiting, wire.answers) == (0, 2)


@MODES
def test_what_a_syn_carries_cannot_stay_behind(hooked: Rig, forward):
    """Such a flow may be evicted at any time, and nothing takes its bytes out then."""
    serve(hooked, forward)
    wire = Wire(hooked)
    wire.client("S", b"fast open")
    wire.client("S", b"fast open", seq=1000)
    assert wire.waiting == 0
    hooked.make_idle(wire.index, hooked.clock.ticks(31))
    wire.client("S", b"fast open", seq=1000)
    assert hooked.load_of("a")["waiting"] == 0


def test_a_flow_that_began_elsewhere_counts_from_its_second_segment(hooked: Rig):
    serve(hooked, Forward.DSR)
    wire = Wire(hooked).ask(POST)
    assert wire.waiting == 0
    wire.ask(b"x")
    assert wire.waiting == 1
    wire.after(LATE_MS).gets(ANSWER)
    assert (wire.waiting, wire.answers) == (0, 1)
    assert hooked.latency("a")["handshake"].sum() == 0


def test_where_answers_pass_it_counts_from_when_the_client_has_seen_one(hooked: Rig):
    """nat: before that it may be a stranger's, and its bytes weigh nothing."""
    serve(hooked, Forward.NAT)
    wire = Wire(hooked).ask(POST).ask(POST)
    assert (wire.waiting, wire.state) == (0, FlowState.EMBRYONIC)
    wire.server(ANSWER)
    wire.ask(POST)
    assert (wire.waiting, wire.state) == (0, FlowState.EMBRYONIC)
    wire.acknowledge()
    wire.ask(POST)
    assert (wire.waiting, wire.state) == (len(POST), FlowState.ESTABLISHED)


@pytest.mark.parametrize("hangs_up", [False, True])
def test_a_flow_that_began_elsewhere_may_be_answered_first(hooked: Rig, *, hangs_up: bool):
    """nat: whatever another flow has left in the slot's entry means nothing."""
    serve(hooked, Forward.NAT)
    wire = Wire(hooked, seq=2**24).ask(POST)
    for field, value in (("seq", wire.seq - 2**20), ("talk", Talk.TLS), ("interim", 900)):
        wire.warm_set(field, value)
    if hangs_up:
        wire.server(flags="FA")
        wire.acknowledge()
    else:
        wire.gets(ANSWER)
    wire.ask(POST)
    assert (wire.waiting, wire.talk) == (len(POST), Talk.PLAIN)
    wire.after(LATE_MS).gets(ANSWER)
    assert (wire.waiting, wire.answers) == (0, 1)


def test_nothing_is_counted_where_nobody_wants_it(hooked: Rig):
    serve(hooked, Forward.DSR, count_waiting=False)
    wire = Wire(hooked).open().ask(POST)
    assert wire.waiting == 0
    assert wire.state is FlowState.ESTABLISHED
    assert not hooked.latency("a")["handshake"].any()
    hooked.serve(service(backend("a"), protocol=Protocol.UDP))
    for _ in range(3):
        hooked.send(Packet(flags=None, payload=POST).frame())
    assert hooked.load_of("a")["waiting"] == 0


# -- what an answer is


@MODES
@pytest.mark.parametrize("late_ms", [1.0, LATE_MS])
def test_100_continue_is_no_answer(hooked: Rig, forward, late_ms: float):
    wire = opened(hooked, forward).ask(POST)
    wire.after(late_ms).gets(CONTINUE)
    assert (wire.waiting, wire.answers) == (len(POST), 0)
    wire.ask(b"b" * 1000)
    assert wire.waiting == len(POST) + 1000
    wire.after(LATE_MS).gets(ANSWER)
    assert (wire.waiting, wire.answers) == (0, 1)


@MODES
def test_the_answer_may_come_with_the_100_continue(hooked: Rig, forward):
    wire = opened(hooked, forward).ask(POST)
    wire.after(LATE_MS).gets(CONTINUE + ANSWER)
    assert (wire.waiting, wire.answers) == (0, 1)


def test_what_an_answer_begins_with_is_read_where_it_passes(hooked: Rig):
    """nat: however late or early."""
    serve(hooked, Forward.NAT)
    wire = Wire(hooked).open()
    heads = [HEAD, b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n", HEAD.replace(b"1.1", b"1.0"),
             HEAD.replace(b"200", b"206"), HEAD.replace(b"200 OK", b"201 Created"),
             *(HEAD.replace(b"OK\r\n", b"OK\r\nx: " + b"1" * n + b"\r\n")
               for n in (900, 1300, 1945, 1946, 1947, 1948))]  # fmt: skip
    for n, head in enumerate(heads):
        wire.ask(POST).after(LATE_MS).gets(head)
        assert (wire.waiting, wire.answers) == (len(POST), n)
        wire.gets(b"5\r\nhello\r\n")
        assert (wire.waiting, wire.answers) == (0, n + 1)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\n\r\n",
        b"HTTP/1.1 500 Oh\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n{}",
        HEAD + b"2\r\n{}\r\n0\r\n\r\n",
        HEAD.replace(b"OK\r\n", b"OK\r\nx: " + b"1" * 2000 + b"\r\n"),
        HEAD.replace(b"200 OK", b"205 Reset Content"),
        b":1000\r\n",
        b"220 smtp.example ESMTP\r\n\r\n",
        b"OK",
        b"x",
    ],
    ids=[
        "404",
        "204",
        "304",
        "500",
        "body",
        "chunked",
        "long",
        "205",
        "redis",
        "other",
        "short",
        "byte",
    ],
)
@pytest.mark.parametrize("late_ms", [0.0, LATE_MS])
def test_anything_else_is_the_answer_at_once(hooked: Rig, answer: bytes, late_ms: float):
    wire = opened(hooked, Forward.NAT).ask(POST)
    wire.after(late_ms).server(answer)
    assert (wire.waiting, wire.answers) == (0, 1)


@pytest.mark.parametrize(
    ("size", "ms", "is_answer"),
    [(512, 80, False), (512, 100, True), (513, 1, True), (128, 95, False), (128, 115, True),
     (129, 95, True), (2, 1, False)],
)  # fmt: skip
@undisturbed
def test_in_dsr_size_and_time_tell_a_head_from_an_answer(hooked: Rig, size, ms, is_answer):
    wire = opened(hooked, Forward.DSR).ask(POST)
    wire.after(ms).gets(bytes(size))
    assert (wire.waiting, wire.answers) == ((0, 1) if is_answer else (len(POST), 0))


@undisturbed
def test_in_dsr_small_pieces_add_up(hooked: Rig):
    wire = opened(hooked, Forward.DSR).ask(POST)
    for _ in range(2):
        wire.after(1).gets(bytes(256))
        assert wire.waiting == len(POST)
    wire.after(1).gets(b"zz")
    assert (wire.waiting, wire.answers) == (0, 1)


@undisturbed
def test_a_slow_round_trip_makes_time_for_a_head(hooked: Rig):
    wire = opened(hooked, Forward.DSR).ask(POST)
    wire.warm_set("rtt_us", 200_000)
    wire.after(300).gets(bytes(300))
    assert wire.waiting == len(POST)
    wire.after(400).gets(bytes(100))
    assert (wire.waiting, wire.answers) == (0, 1)


@MODES
@undisturbed
def test_a_head_alone_was_all_of_the_answer_if_the_client_asks_again(hooked: Rig, forward):
    wire = opened(hooked, forward).ask(POST)
    wire.after(1).gets(HEAD)
    assert wire.waiting == len(POST)
    wire.ask(b"GET / HTTP/1.1\r\n\r\n")
    assert (wire.waiting, wire.answers) == (18, 0)
    wire.after(LATE_MS).gets(ANSWER)
    assert (wire.waiting, wire.answers) == (0, 1)


# -- the end


@MODES
def test_a_client_that_only_listens_still_waits(hooked: Rig, forward):
    wire = opened(hooked, forward).ask(POST)
    wire.client("FA")
    assert (wire.waiting, wire.state) == (len(POST), FlowState.CLOSING)
    assert hooked.counts("a").closed == 1
    wire.after(1).gets(b"y" * 40)
    assert (wire.waiting, wire.answers, wire.state) == (0, 1, FlowState.CLOSING)
    assert hooked.counts("a").closed == 1


@MODES
@undisturbed
def test_nothing_is_learned_from_answers_to_those_who_have_hung_up(hooked: Rig, forward):
    """A cable was cut, its clients gave up, and a minute later their answers came."""
    wire = opened(hooked, forward)
    latency = hooked.tables.backend_latency[hooked.backend_id("a")]
    wire.ask(POST).after(LATE_MS).gets(ANSWER)
    assert (latency["samples"], wire.answers) == (1, 1)
    wire.ask(POST).client("FA")
    wire.after(60_000).gets(ANSWER)
    assert (latency["samples"], wire.answers, wire.waiting) == (1, 2, 0)


@MODES
def test_the_last_request_may_come_with_the_fin(hooked: Rig, forward):
    wire = opened(hooked, forward).ask(POST, "FPA")
    assert (wire.waiting, wire.state) == (len(POST), FlowState.CLOSING)
    wire.after(LATE_MS).gets(ANSWER)
    assert (wire.waiting, wire.answers) == (0, 1)


@MODES
@undisturbed
def test_a_client_that_has_got_something_and_hangs_up_waits_no_more(hooked: Rig, forward):
    wire = opened(hooked, forward).ask(POST)
    wire.after(1).gets(HEAD)
    wire.client("FA")
    assert (wire.waiting, wire.answers, wire.state) == (0, 0, FlowState.CLOSING)


@MODES
@pytest.mark.parametrize("flags", ["R", "RA"])
@pytest.mark.parametrize("closing", [False, True])
def test_a_reset_of_the_client_takes_everything_out(hooked: Rig, forward, flags: str, *, closing):
    wire = opened(hooked, forward).ask(POST)
    if closing:
        wire.client("FA")
    wire.client(flags)
    assert (wire.waiting, wire.answers, wire.state) == (0, 0, FlowState.CLOSING)


@pytest.mark.parametrize("flags", ["FA", "R", "RA"])
def test_a_server_that_hangs_up_has_not_answered(hooked: Rig, flags: str):
    wire = opened(hooked, Forward.NAT).ask(POST)
    wire.server(flags=flags)
    assert (wire.waiting, wire.answers, wire.state) == (0, 0, FlowState.CLOSING)


def test_in_dsr_a_server_that_hangs_up_is_one_byte_further(hooked: Rig):
    wire = opened(hooked, Forward.DSR).ask(POST)
    wire.after(LATE_MS).server(flags="FA")
    wire.acknowledge()
    assert (wire.waiting, wire.answers) == (0, 0)


@MODES
def test_an_answer_with_its_fin_is_an_answer(hooked: Rig, forward):
    wire = opened(hooked, forward).ask(POST)
    wire.after(LATE_MS).server(ANSWER, "FPA")
    wire.acknowledge()
    assert (wire.waiting, wire.answers) == (0, 1)


@MODES
@pytest.mark.parametrize("closing", [False, True])
def test_a_flow_given_up_takes_its_bytes_along(hooked: Rig, forward, *, closing: bool):
    """Its backend goes into maintenance; another takes the flow over and starts at nothing."""
    wire = opened(hooked, forward).ask(POST)
    if closing:
        wire.client("FA")
    gone = backend("a", SERVER, admin=AdminState.MAINTENANCE)
    hooked.serve(service(gone, backend("b"), forward=forward))
    hooked.send(Packet(sport=wire.sport, flags="A", seq=wire.seq, ack=wire.acked).frame())
    assert [hooked.load_of(n)["waiting"] for n in "ab"] == [0, 0]


@MODES
@pytest.mark.parametrize("closing", [False, True])
def test_a_slot_that_is_taken_over_gives_its_bytes_back(hooked: Rig, forward, *, closing: bool):
    serve(hooked, forward)
    clients = hooked.clients_in_bucket(17, 9)
    for address, port in clients[:8]:
        for flags, payload in (("S", b""), ("A", b""), ("PA", POST), ("FA" * closing or "A", b"")):
            seq = 1000 + ("S" not in flags) + len(POST) * (flags in ("FA", "A") and bool(payload))
            hooked.send(Packet(str(address), sport=port, flags=flags, seq=seq, ack=1,
                               payload=payload).frame())  # fmt: skip
            if flags == "S":
                hooked.send(Packet(SERVER, str(address), 80, port, flags="SA", seq=0).frame())
    assert hooked.load_of("a")["waiting"] == 8 * len(POST)
    slot = hooked.slot(str(clients[3][0]), clients[3][1])
    assert slot is not None
    hooked.make_idle(slot.index, hooked.clock.ticks(900) + 1)
    hooked.send(Packet(str(clients[8][0]), sport=clients[8][1]).frame())
    assert hooked.load_of("a")["waiting"] == 7 * len(POST)
    assert hooked.tables.flows_warm["waiting"][slot.index] == 0


@MODES
def test_old_ports_begin_anew_though_the_old_connection_still_waits(hooked: Rig, forward):
    wire = opened(hooked, forward).ask(POST)
    wire.client("FA")
    assert wire.waiting == len(POST)
    again = Wire(hooked, seq=99_000).open()
    assert (again.waiting, again.state) == (0, FlowState.ACKED)
    again.ask(b"GET /")
    assert (again.waiting, again.state) == (5, FlowState.ESTABLISHED)
    assert hooked.counts("a").opened == 2
