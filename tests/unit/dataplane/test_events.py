"""Events of the ring as words: names, addresses, reasons."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import numpy as np
import pytest

from agent.dataplane import abi
from agent.dataplane.events import Lexicon, decode, kinds_mask, lexicon_of, read, tcp_flags
from agent.model import Backend, NoBackend, Protocol, Scheduler, Service, ServiceKey
from agent.state.events import DROP_REASONS, Event, EventKind, Fate

B1 = Backend("b1", ip_address("10.0.0.21"))
WEB = Service(
    "web",
    ServiceKey(ip_address("192.0.2.1"), 443, Protocol.TCP),
    scheduler=Scheduler.LEAST_LOAD,
    backends=(B1,),
)
WORDS = Lexicon({3: WEB}, {7: B1})


def row(kind: abi.EventKind | int, **fields: object) -> np.ndarray:
    """One event as the kernel writes it."""
    made = np.zeros(1, dtype=abi.EVENT)
    for name, address in (
        ("client", fields.pop("client", "10.0.0.9")),
        ("vip", fields.pop("vip", "192.0.2.1")),
    ):
        packed = ip_address(str(address)).packed
        made["family"] = 4 if len(packed) == 4 else 6
        made[name] = np.frombuffer(packed.ljust(16, b"\0"), dtype=">u4")
    settings = {
        "time": 5_250_000_000,
        "client_port": 40_000,
        "vip_port": 443,
        "service": 3,
        "backend": 7,
        "len": 60,
        "kind": int(kind),
        "l4_proto": 6,
        "tcp_flags": 0x02,
    }
    for name, value in (settings | fields).items():
        made[name] = value
    return made


def one(kind: abi.EventKind, **fields: object) -> Event:
    (event,) = decode(row(kind, **fields), WORDS, 1_700_000_000_000_000_000)
    return event


def test_pick_names_service_backend_and_scheduler():
    assert one(abi.EventKind.PICK) == Event(
        at=1_700_000_005.25,
        kind=EventKind.PICK,
        protocol=6,
        client=ip_address("10.0.0.9"),
        client_port=40_000,
        vip=ip_address("192.0.2.1"),
        port=443,
        length=60,
        service="web",
        backend="b1",
        backend_address=ip_address("10.0.0.21"),
        scheduler="least-load",
        tcp_flags="S",
    )


def test_drop_has_its_reason_and_no_backend():
    event = one(abi.EventKind.DROP, reason=abi.Reason.NO_BACKEND, backend=0)
    assert (event.kind, event.reason, event.backend, event.backend_address) == (
        EventKind.DROP,
        "no-backend",
        None,
        None,
    )
    assert event.scheduler is None


@pytest.mark.parametrize(
    ("reason", "policy", "fate"),
    [
        (abi.Reason.FRAGMENT, NoBackend.DROP, Fate.PASSED),
        (abi.Reason.MALFORMED, NoBackend.RESET, Fate.DROPPED),
        (abi.Reason.NO_BACKEND, NoBackend.DROP, Fate.DROPPED),
        (abi.Reason.NO_BACKEND, NoBackend.RESET, Fate.REFUSED),
        (abi.Reason.TTL_EXCEEDED, NoBackend.DROP, Fate.REFUSED),
        (abi.Reason.TOO_BIG, NoBackend.DROP, Fate.REFUSED),
        (abi.Reason.INTERNAL, NoBackend.DROP, Fate.DROPPED),
    ],
)
def test_what_becomes_of_a_packet_follows_from_the_reason_and_the_policy(reason, policy, fate):
    words = Lexicon({3: replace(WEB, no_backend=policy)}, {})
    (event,) = decode(row(abi.EventKind.DROP, reason=reason), words, 0)
    assert event.fate is fate


def test_reason_of_a_newer_program_is_shown_by_its_number():
    assert one(abi.EventKind.DROP, reason=200).reason == "reason-200"


def test_only_a_drop_has_a_reason_and_only_an_answer_waited():
    answer = one(abi.EventKind.ANSWER, waited_bytes=4321, waited_us=812_000, reason=6)
    assert (answer.waited_bytes, answer.waited_us) == (4321, 812_000)
    assert (answer.reason, answer.fate) == (None, None)
    assert one(abi.EventKind.CLOSE, waited_bytes=1).waited_bytes is None


def test_ipv6_addresses_are_whole():
    event = one(abi.EventKind.PACKET, client="2001:db8::9", vip="2001:db8:1::443")
    assert (str(event.client), str(event.vip)) == ("2001:db8::9", "2001:db8:1::443")


@pytest.mark.parametrize(
    ("state", "name"),
    [(0, None), (1, "embryonic"), (2, "established"), (5, "acked"), (6, "established")],
)
def test_state_before_the_packet_is_named(state, name):
    assert one(abi.EventKind.PACKET, state=state).state == name


def test_what_is_not_tcp_has_no_flags_and_what_has_no_ports_has_none():
    event = one(abi.EventKind.DROP, l4_proto=1, client_port=0, vip_port=0)
    assert (event.tcp_flags, event.client_port, event.port) == (None, None, None)


def test_ids_that_are_gone_have_no_names():
    event = one(abi.EventKind.PICK, service=99, backend=98)
    assert (event.service, event.backend, event.scheduler) == (None, None, None)


def test_kinds_that_are_not_known_are_left_out_and_the_order_stays():
    rows = [row(1, time=1), row(0, time=2), row(77, time=3), row(2, time=4)]
    samples = [each.tobytes() for each in rows]
    assert read(samples)["time"].tolist() == [1, 4]
    assert [event.kind for event in decode(read(samples), WORDS, 0)] == [
        EventKind.DROP,
        EventKind.PICK,
    ]
    assert len(read([])) == 0


@pytest.mark.parametrize(
    ("bits", "text"),
    [(0x02, "S"), (0x12, "S."), (0x11, "F."), (0x18, "P."), (0x14, "R."), (0, "none")],
)
def test_tcp_flags_are_written_as_tcpdump_writes_them(bits, text):
    assert tcp_flags(bits) == text


def test_kinds_mask_has_the_bits_of_the_abi():
    assert kinds_mask(frozenset()) == 0
    assert kinds_mask(frozenset({EventKind.DROP, EventKind.CLOSE})) == 0b1000010


def test_every_kind_and_every_reason_for_a_drop_has_a_name():
    assert {kind.name for kind in EventKind} == {kind.name for kind in abi.EventKind} - {"NONE"}
    passed_unseen = {"none", "not-ip", "not-vip"}
    assert list(DROP_REASONS) == [r.label for r in abi.Reason if r.label not in passed_unseen]


def test_lexicon_is_made_anew_only_for_another_situation(monkeypatch):
    monkeypatch.setattr("agent.dataplane.events.lexicon", lambda now: [now])
    situations = ["first", "first", "second"]
    words = lexicon_of(lambda: situations[0])
    first = words()
    assert words() is first
    del situations[:2]
    assert words() == ["second"]
