"""SYN cookies: a SYN is answered in the server's name, and the ACK that comes back opens a flow."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from agent.companion.keys import Keys, packed, wall_ahead_ns
from agent.model import Forward, Scheduler, SynProtection
from tests.packet import cookies
from tests.packet.cookies import KEY, LINUX, NOP, OTHER_KEY, SACK, WINDOWS, cookie
from tests.packet.frames import BALANCER_MAC, ROUTER_MAC
from tests.packet.harness import Rig, Verdict, backend, service
from tests.packet.model import synack as model
from tests.packet.pieces import DESTINATION, extended, extension, framed
from tests.packet.places import PLACES, V4, V6, Place
from tests.packet.test_answer import TAGS
from tests.packet.wires import Packet, Tags, checksum, pseudo_header

ISN = 3_000_000_000
WINDOW = 65_535
CLOCKS_NS = 1_000_000  # how far the program's clock may be from the wall clock
MODES = pytest.mark.parametrize(
    "forward", [Forward.DSR, Forward.IPIP, Forward.GUE], ids=lambda f: f.value
)
# What a tunnel takes of the segments that clients may send.
TAKES = {Forward.DSR: 0, Forward.IPIP: 40, Forward.GUE: 48}


@pytest.fixture(autouse=True)
def secret(rig: Rig) -> Iterator[None]:
    tell(rig, KEY)
    yield
    tell(rig)


def tell(rig: Rig, *keys: bytes, ahead_ns: int = 0, mtu: int = 0) -> None:
    """The program gets these keys, and a clock that is ahead."""
    row = packed(Keys(keys) if keys else None, clock_ahead_ns() + ahead_ns, mtu)
    rig.tables.cookie_secret.view("u1")[:] = bytearray(row)


def clock_ahead_ns() -> int:
    """``wall_ahead_ns()``, read again if the host has paused between the two clocks."""
    while True:
        since_ns, found_ns = time.monotonic_ns(), wall_ahead_ns()
        if time.monotonic_ns() - since_ns < CLOCKS_NS:
            return found_ns


def serve(rig: Rig, at: Place, forward: Forward = Forward.DSR, **fields: object) -> None:
    fields.setdefault("syn_protection", SynProtection.ALWAYS)
    fields.setdefault("syn_cookies", True)
    members = [backend(name, at.server) for name in "a"]
    rig.serve(service(*members, vip=at.vip, forward=forward, **fields))


def asked_by(at: Place, options: bytes = LINUX, **fields: object) -> Packet:
    fields.setdefault("seq", ISN)
    return Packet(at.client, at.vip, options=options, **fields)


def told(rig: Rig, asked: Packet, tags: Tags = ()) -> tuple[bytes, bytes, int]:
    """The answer to a SYN: its IP header, its TCP header, and the cookie in that."""
    done = rig.send(framed(asked.ip, tags=tags))
    assert done.verdict == Verdict.TX
    at = 14 + 4 * len(tags) + len(asked.ip) - len(asked.l4)
    head = done.data[14 + 4 * len(tags) : at]
    return head, done.data[at:], int.from_bytes(done.data[at + 4 : at + 8])


def ack_of(asked: Packet, number: int, **fields: object) -> Packet:
    """What ends the handshake."""
    usual = {"flags": "A", "seq": asked.seq + 1, "ack": number + 1, "options": b"", "payload": b""}
    return replace(asked, **(usual | fields))


def numbers(asked: Packet, **said: object) -> set[int]:
    """The cookie of a SYN that comes right now, and of one before which an epoch begins."""
    epoch = cookies.epoch_of(time.time_ns() - CLOCKS_NS)
    return {cookie(asked, epoch=each, **said) for each in (epoch, epoch + 1)}  # type: ignore[arg-type]


def synack(asked: Packet, number: int, options: bytes) -> bytes:
    """The IP packet that the client gets."""
    answer = asked.reply(flags="SA", seq=number, ack=asked.seq + 1, options=options, ident=0)
    body = bytearray(answer.l4)
    body[14:18] = WINDOW.to_bytes(2) + bytes(2)
    total = checksum(pseudo_header(answer.src, answer.dst, 6, len(body)) + bytes(body))
    body[16:18] = total.to_bytes(2)
    return answer.ip[: len(answer.ip) - len(body)] + bytes(body)


@PLACES
@MODES
@pytest.mark.parametrize("tags", TAGS, ids=len)
def test_the_answer_to_the_byte(rig: Rig, at: Place, forward: Forward, tags: Tags):
    """As Linux would answer; nothing is recorded."""
    serve(rig, at, forward)
    mss = (1460 if at is V4 else 1440) - TAKES[forward]
    for options, wanted, said in (
        (b"", b"", {}),
        (cookies.mss_option(900), cookies.mss_option(mss), {"mss": 900}),
        (
            WINDOWS,
            cookies.mss_option(mss) + SACK + NOP * 3 + cookies.scale_option(7),
            {"mss": 1440, "scale": 8, "sack": True},
        ),
        (
            cookies.mss_option(1300) + NOP * 8,
            cookies.mss_option(mss) + NOP * 8,
            {"mss": 1300},
        ),
    ):
        asked = asked_by(at, options)
        right = [
            framed(synack(asked, number, wanted), ROUTER_MAC, BALANCER_MAC, tags)
            for number in numbers(asked, **said)
        ]
        done = rig.send(framed(asked.ip, tags=tags))
        assert done.verdict == Verdict.TX
        assert done.data in right
    assert not rig.tables.flows.any()
    assert rig.reasons() == {"challenged": 4}
    assert rig.service_counts().replied == 4


@PLACES
def test_timestamps_come_back(rig: Rig, at: Place):
    serve(rig, at)
    asked = asked_by(at)
    right = numbers(asked, mss=1460, scale=10, sack=True)
    _, l4, number = told(rig, asked)
    stamp = int.from_bytes(l4[28:32])
    mss = 1460 if at is V4 else 1440
    wanted = cookies.mss_option(mss) + SACK + cookies.timestamps(stamp, 77) + NOP
    assert l4[20:] == wanted + cookies.scale_option(7)
    assert abs(stamp - (time.monotonic_ns() >> 20)) < 10_000
    assert number in right


OPTIONS = {
    "mss": cookies.mss_option(1460),
    "sack": SACK,
    "scale": cookies.scale_option(3),
    "timestamps": cookies.timestamps(9),
    "fast-open": b"\x22\x02",
    "md5": b"\x13\x12" + bytes(16),
}


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_options_in_any_order(rig: Rig, count: int):
    """And others among them. What fits into the place of the SYN is answered."""
    serve(rig, V4)
    for names in itertools.permutations(OPTIONS, count):
        options = b"".join(OPTIONS[name] for name in names)
        if len(options) > 40:
            continue
        asked = asked_by(V4, options.ljust(-(-len(options) // 4) * 4, b"\0"))
        space, has_all = len(asked.options), len(asked.options) >= 12
        said = {
            "mss": 1460 if "mss" in names else None,
            "scale": 3 if "scale" in names and has_all else None,
            "sack": "sack" in names and has_all,
        }
        right = numbers(asked, **said)
        _, l4, number = told(rig, asked)
        assert number in right, names
        has_stamps = "timestamps" in names and space >= 20
        assert len(l4) - 20 == (20 if has_stamps else 12 if has_all else min(space, 4))
        assert (b"\x08\x0a" in l4[20:28]) is has_stamps


@pytest.mark.parametrize(
    "options",
    [
        b"\3\0\0\0",
        b"\2\4\5",
        b"\2\1\1\1",
        b"\3" * 40,
        NOP * 40,
        b"\xff\xff" * 20,
        b"\2\4\5\xb4" * 10,
        b"\3\3\xff\0" + b"\2\4\0\0",
        b"\0" + LINUX[1:],
    ],
    ids=lambda o: o[:6].hex(),
)
def test_strange_options_are_no_harm(rig: Rig, options: bytes):
    serve(rig, V4)
    asked = asked_by(V4, options.ljust(-(-len(options) // 4) * 4, b"\0")[:40])
    _, l4, number = told(rig, asked)
    assert len(l4) <= len(asked.l4)
    ack = ack_of(asked, number)
    assert rig.verdict(ack.frame()) == Verdict.TX
    assert np.count_nonzero(rig.tables.flows) == 1


def test_a_window_scale_beyond_what_there_is_counts_as_the_largest(rig: Rig):
    serve(rig, V4)
    asked = asked_by(V4, cookies.mss_option(1460) + NOP + cookies.scale_option(99) + NOP * 4)
    assert told(rig, asked)[2] & 15 == 14


@PLACES
@MODES
def test_the_ack_opens_a_flow_and_shows_who_is_there(rig: Rig, at: Place, forward: Forward):
    serve(rig, at, forward)
    asked = asked_by(at)
    number = told(rig, asked)[2]
    assert rig.verdict(ack_of(asked, number).frame()) == Verdict.TX
    assert np.count_nonzero(rig.tables.flows) == 1
    assert rig.counts("a").opened == 1
    assert rig.service_counts().cookies == 1
    assert rig.reasons() == {"challenged": 1}
    # It goes on, and begins others as if nothing were: it is known for ten minutes.
    data = ack_of(asked, number, flags="PA", payload=b"GET /")
    assert rig.verdict(data.frame()) == Verdict.TX
    assert rig.counts("a").opened == 1
    assert rig.counts("a").established == 1
    assert rig.service_counts().cookies == 1
    assert rig.verdict(replace(asked, sport=7).frame()) == Verdict.TX
    assert rig.reasons() == {"challenged": 1}
    assert np.count_nonzero(rig.tables.flows) == 2


def test_data_after_a_lost_ack_opens_it_too(rig: Rig):
    serve(rig, V4)
    asked = asked_by(V4)
    number = told(rig, asked)[2]
    data = ack_of(asked, number, flags="PA", payload=b"GET / HTTP/1.1")
    assert rig.verdict(data.frame()) == Verdict.TX
    assert rig.service_counts().cookies == 1


@PLACES
def test_a_wrong_number_opens_nothing(rig: Rig, at: Place):
    serve(rig, at)
    asked = asked_by(at)
    number = told(rig, asked)[2]
    guesses = [ack_of(asked, number ^ 1 << bit) for bit in range(32)]
    good = ack_of(asked, number)
    guesses += [replace(good, seq=good.seq + 1), replace(good, sport=good.sport ^ 1)]
    guesses += [replace(good, flags="SA"), replace(good, flags="R"), replace(good, flags="RA")]
    guesses += [replace(good, src="198.51.100.200" if at is V4 else "2001:db8:c:1::7")]
    for guess in guesses:
        rig.send(guess.frame())
    assert not rig.tables.flows.any()
    assert rig.service_counts().cookies == 0
    assert not rig.verified.view("u8").any()


def test_a_cookie_is_good_for_a_minute_and_clocks_may_differ(rig: Rig):
    serve(rig, V4)
    asked = asked_by(V4)
    epoch_ns = 1 << cookies.EPOCH_LOG
    now = time.time_ns()
    middle_ns = epoch_ns // 2 - now % epoch_ns  # what brings the clock to the middle of an epoch
    tell(rig, KEY, ahead_ns=middle_ns)
    number = told(rig, asked)[2]
    for ahead_ns, is_taken in (
        (middle_ns + 2 * epoch_ns, False),
        (middle_ns - 2 * epoch_ns, False),
        (middle_ns + epoch_ns, True),
        (middle_ns, True),
    ):
        rig.tables.flows[:] = 0
        tell(rig, KEY, ahead_ns=ahead_ns)
        rig.send(ack_of(asked, number).frame())
        assert bool(rig.tables.flows.any()) is is_taken, ahead_ns
    # A balancer that is 5 s ahead made it in the next epoch; but for that it would be old.
    rig.tables.flows[:] = 0
    just_after = middle_ns + epoch_ns // 2 + 1_000_000_000
    tell(rig, KEY, ahead_ns=just_after)
    other = replace(asked, sport=999)
    number = told(rig, other)[2]
    tell(rig, KEY, ahead_ns=just_after - 5_000_000_000)
    rig.send(ack_of(other, number).frame())
    assert rig.tables.flows.any()


def test_the_key_changes_and_no_connection_is_lost(rig: Rig):
    serve(rig, V4)
    asked = asked_by(V4)
    right = numbers(asked, mss=1460, scale=10, sack=True)
    number = told(rig, asked)[2]
    assert number in right
    tell(rig, OTHER_KEY, KEY)
    rig.send(ack_of(asked, number).frame())
    assert rig.service_counts().cookies == 1
    rig.verified.view("u8")[:] = 0
    other = replace(asked, sport=999)
    right = numbers(other, mss=1460, scale=10, sack=True, key=OTHER_KEY)
    number = told(rig, other)[2]
    assert number in right
    tell(rig, OTHER_KEY)
    rig.send(ack_of(other, number).frame())
    assert rig.service_counts().cookies == 2


def test_without_a_key_a_syn_is_dropped(rig: Rig):
    """The agent never lets it come to that."""
    serve(rig, V4)
    tell(rig)
    assert rig.verdict(asked_by(V4).frame()) == Verdict.DROP
    zero = cookie(asked_by(V4), mss=1460, scale=10, sack=True, key=bytes(16))
    rig.send(ack_of(asked_by(V4), zero).frame())
    assert not rig.tables.flows.any()


def test_a_smaller_mtu_is_told(rig: Rig):
    serve(rig, V4)
    tell(rig, KEY, mtu=1400)
    assert told(rig, asked_by(V4))[1][20:24] == cookies.mss_option(1360)


@pytest.mark.parametrize("before", ["S", "S A PA FA"], ids=["embryonic", "closing"])
def test_a_record_of_before_is_no_hindrance(rig: Rig, before: str):
    """The ACK begins another connection with the same ports, wherever the old one was."""
    serve(rig, V4, syn_protection=SynProtection.OFF, syn_cookies=False)
    asked = asked_by(V4)
    for number, flags in enumerate(before.split()):
        rig.send(replace(asked, flags=flags, options=b"", seq=ISN + (number > 0)).frame())
    opened = rig.counts("a").opened
    serve(rig, V4)
    number = told(rig, replace(asked, seq=ISN + 9))[2]
    rig.send(ack_of(replace(asked, seq=ISN + 9), number).frame())
    assert rig.counts("a").opened == opened + 1
    assert rig.service_counts().cookies == 1


def test_an_established_flow_is_not_asked(rig: Rig):
    serve(rig, V4, syn_protection=SynProtection.OFF, syn_cookies=False)
    asked = asked_by(V4, b"")
    for flags in ("S", "A", "PA"):
        rig.send(replace(asked, flags=flags).frame())
    serve(rig, V4)
    number = cookie(asked, mss=None)
    rig.send(ack_of(asked, number).frame())
    assert rig.service_counts().cookies == 0
    assert rig.counts("a").opened == 1


@pytest.mark.parametrize("scheduler", list(Scheduler), ids=lambda s: s.value)
def test_the_scheduler_decides_and_not_the_hash(rig: Rig, scheduler: Scheduler):
    """The ACK is the first packet of its connection, though it is no SYN."""
    members = [backend(f"b{n}") for n in range(4)]
    rig.serve(service(*members, scheduler=scheduler, syn_protection=SynProtection.ALWAYS,
                      syn_cookies=True, source_bound=0.0))  # fmt: skip
    seen = []
    for n in range(40):
        asked = replace(asked_by(V4), src=f"198.51.100.{n + 1}")
        ack = ack_of(asked, told(rig, asked)[2]).frame()
        seen.append(rig.backend_of(ack))
    plain = [replace(asked_by(V4), src=f"198.51.100.{n + 1}", sport=50_000) for n in range(40)]
    if scheduler in (Scheduler.ROUND_ROBIN, Scheduler.LEAST_CONN):
        counts = sorted(seen.count(name) for name in set(seen))
        assert len(counts) == 4
        assert counts[-1] - counts[0] <= 2 * 2
    if scheduler is Scheduler.SOURCE:  # with each source's other connections
        assert [rig.backend_of(packet.frame()) for packet in plain] == seen


def test_an_ack_of_nobody_goes_on_and_opens_nothing(rig: Rig):
    serve(rig, V4)
    assert rig.verdict(asked_by(V4, b"", flags="A", ack=5).frame()) == Verdict.TX
    assert not rig.tables.flows.any()


@PLACES
def test_a_syn_with_something_between_its_headers_is_challenged_instead(rig: Rig, at: Place):
    """A server looks for cookies right behind the IP header."""
    serve(rig, at)
    plain = asked_by(at)
    frame = (
        replace(plain, ip_options=b"\1" * 4).frame()
        if at is V4
        else framed(extended(plain.ip, extension(DESTINATION)))
    )
    done = rig.send(frame)
    assert done.verdict == Verdict.TX
    flags_at = len(done.data) - 20 + 13
    assert done.data[flags_at] == 0x10
    assert rig.reasons() == {"challenged": 1}


def test_two_families_have_their_own_sizes(rig: Rig):
    for at in (V4, V6):
        serve(rig, at)
        asked = asked_by(at, cookies.mss_option(8960) + NOP * 8)
        number = told(rig, asked)[2]
        assert model.MSS[4 if at is V4 else 6][number >> 5 & 3] == (1460 if at is V4 else 8940)
