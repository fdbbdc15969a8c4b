"""Records of TLS as OpenSSL sends them, and connections that have come so far with them."""

from __future__ import annotations

from agent.dataplane.abi import Talk
from agent.model import Forward
from tests.packet.harness import Rig
from tests.packet.talks import LATE_MS, Wire, opened

CHANGE_CIPHER, ALERT, HANDSHAKE, DATA = 0x14, 0x15, 0x16, 0x17


def record(kind: int, length: int, version: int = 3) -> bytes:
    """A TLS record of so many bytes, its header included (RFC 8446, section 5.1)."""
    return bytes([kind, 3, version]) + (length - 5).to_bytes(2) + b"\xa5" * (length - 5)


HELLO = record(HANDSHAKE, 517, version=1)
CHANGE = bytes.fromhex("140303000101")
FINISHED_13 = CHANGE + record(DATA, 58)  # with SHA-256
FINISHED_13_384 = CHANGE + record(DATA, 74)
FINISHED_12 = record(HANDSHAKE, 42) + CHANGE + record(HANDSHAKE, 45)
SERVER_FLIGHT = record(HANDSHAKE, 127) + CHANGE + record(DATA, 1900)
TICKETS = record(DATA, 287) * 2
REQUEST = record(DATA, 1400)
ANSWER = record(DATA, 1200)


def hello(rig: Rig, forward: Forward) -> Wire:
    """A connection on which the server has just answered the ClientHello."""
    wire = opened(rig, forward).ask(HELLO)
    assert (wire.waiting, wire.talk) == (0, Talk.TLS_HANDSHAKE)
    wire.gets(SERVER_FLIGHT)
    return wire


def shaken(rig: Rig, forward: Forward) -> Wire:
    """TLS 1.3, the handshake done."""
    wire = hello(rig, forward).ask(FINISHED_13)
    assert (wire.waiting, wire.talk) == (0, Talk.TLS_FIRST)
    return wire


def answered(rig: Rig, forward: Forward) -> Wire:
    """TLS 1.3, the first request answered."""
    wire = shaken(rig, forward).ask(REQUEST)
    wire.after(LATE_MS).gets(ANSWER)
    assert (wire.waiting, wire.talk, wire.answers) == (0, Talk.TLS, 1)
    return wire
