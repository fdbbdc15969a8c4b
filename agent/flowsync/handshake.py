"""Defines how two balancers prove to each other that they know the secret, and agree on a session.

    initiator                         acceptor
    HELLO (versions, name, nonce) →
                                    ← HELLO
    PROOF (HMAC of both hellos)   →
                                    ← PROOF

Everything that is read before the secret is proven is bounded in size. The first 12 bytes and the
field ``project`` are the same in every version, so two versions that cannot talk can still say so.
"""

from __future__ import annotations

import enum
import hmac
import json
import struct
from dataclasses import dataclass

from agent.flowsync.framing import Opener, Sealer

PROTOCOL = 1
PREFIX = struct.Struct("!8sHH")  # magic, a number, how many bytes follow
PROOF_BYTES = 32
MOST_BYTES = 1024  # that may follow a prefix
_NONCE_BYTES = 32
_LONGEST_NAME = 128
_LONGEST_VERSION = 32  # short, because it is logged before anything is proven
_HELLO, _PROOF, _REFUSAL = b"STEELYHI", b"STEELYOK", b"STEELYNO"


class Why(enum.IntEnum):
    """Why a stream was refused. The number goes over the wire, the name is a metric's label."""

    GARBAGE = 1  # not this protocol
    PROTOCOL = 2
    RECORDS = 3
    KEY = 4
    SELF = 5
    ALREADY = 6
    STRANGER = 7
    BUSY = 8

    @property
    def label(self) -> str:
        return self.name.lower()


class Refused(Exception):  # noqa: N818 (an outcome, not a defect)
    """The handshake failed. ``by_peer``: the peer refused us, rather than we it."""

    def __init__(self, why: Why, text: str, *, by_peer: bool = False) -> None:
        super().__init__(text)
        self.why = why
        self.by_peer = by_peer


@dataclass(frozen=True, slots=True)
class Hello:
    """How a balancer presents itself."""

    project: str  # version of the project
    protocol: int
    records: int  # version of the records
    name: str
    process: str  # random per process; a node that receives its own has connected to itself
    nonce: bytes

    def pack(self) -> bytes:
        body = json.dumps(
            {
                "project": self.project,
                "records": self.records,
                "name": self.name[:_LONGEST_NAME],
                "process": self.process,
                "nonce": self.nonce.hex(),
            }
        ).encode()
        return PREFIX.pack(_HELLO, self.protocol, len(body)) + body


@dataclass(frozen=True, slots=True)
class Session:
    """What both ends have agreed on, seen from this end."""

    peer: Hello
    sealer: Sealer
    opener: Opener


def rest_bytes(prefix: bytes) -> int:
    """Return how many bytes follow. Refused if this is no handshake message of ours."""
    magic, _, length = PREFIX.unpack(prefix)
    if magic not in (_HELLO, _PROOF, _REFUSAL) or length > MOST_BYTES:
        raise Refused(Why.GARBAGE, "what the peer sent is not a balancer's handshake")
    return int(length)


def read_hello(prefix: bytes, body: bytes) -> Hello:
    """Return the peer's hello. Refused if it is not one, or if the peer refuses us."""
    magic, number, _ = PREFIX.unpack(prefix)
    _raise_if_refused(magic, number)
    try:
        fields = json.loads(body)
        hello = Hello(
            project=printable(str(fields["project"]), _LONGEST_VERSION),
            protocol=number,
            records=int(fields.get("records", 0)),
            name=printable(str(fields.get("name", ""))),
            process=printable(str(fields.get("process", ""))),
            nonce=bytes.fromhex(fields.get("nonce", "")),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        hello = None  # OverflowError: Python's JSON allows Infinity, which int() refuses
    if magic != _HELLO or hello is None:
        raise Refused(Why.GARBAGE, "what the peer sent is not a balancer's hello")
    return hello


def check(own: Hello, peer: Hello) -> None:
    """Raise Refused if these two cannot talk."""
    versions = f"the peer has version {peer.project} of the project, this node {own.project}"
    if peer.protocol != own.protocol:
        raise Refused(
            Why.PROTOCOL,
            f"{versions}: they speak protocols {peer.protocol} and {own.protocol}"
            " of the flow sync; upgrade the older one",
        )
    if peer.records != own.records:
        raise Refused(
            Why.RECORDS,
            f"{versions}: their records have versions {peer.records} and {own.records};"
            " upgrade the older one",
        )
    if len(peer.nonce) != _NONCE_BYTES:
        raise Refused(Why.GARBAGE, "the peer's hello has no nonce")
    if peer.process == own.process:
        raise Refused(Why.SELF, "this is this node itself; take its address out of 'peers'")


def pack_proof(secret: bytes, transcript: bytes, *, initiator: bool) -> bytes:
    """Return the message that proves to a peer with the same hellos that we know the secret."""
    return PREFIX.pack(_PROOF, 0, PROOF_BYTES) + _proof(secret, transcript, initiator)


def check_proof(
    secret: bytes, transcript: bytes, prefix: bytes, body: bytes, *, initiator: bool
) -> None:
    """Raise Refused unless this is the initiator's proof, or with ``initiator=False`` the
    acceptor's.
    """
    magic, number, _ = PREFIX.unpack(prefix)
    _raise_if_refused(magic, number)
    if magic != _PROOF:
        raise Refused(Why.GARBAGE, "what the peer sent is not a balancer's proof")
    if not hmac.compare_digest(body, _proof(secret, transcript, initiator)):
        raise Refused(Why.KEY, _TEXTS[Why.KEY])


def pack_refusal(why: Why) -> bytes:
    return PREFIX.pack(_REFUSAL, why, 0)


def agree(secret: bytes, transcript: bytes, peer: Hello, *, initiator: bool) -> Session:
    """Return the session that follows from these hellos, once both proofs have been checked."""
    own, other = (b"initiator", b"acceptor") if initiator else (b"acceptor", b"initiator")
    return Session(
        peer,
        Sealer(_derive(secret, b"frames of the " + own, transcript)),
        Opener(_derive(secret, b"frames of the " + other, transcript)),
    )


def printable(text: str, longest: int = _LONGEST_NAME) -> str:
    """Return another node's text with unprintable characters replaced, so that it can be logged."""
    return "".join(char if char.isprintable() else "?" for char in text[:longest])


_TEXTS = {
    Why.GARBAGE: "the peer does not recognise our handshake; is it an older version?",
    Why.PROTOCOL: "the peer speaks another protocol: the two nodes have different versions of the"
    " project; upgrade the older one",
    Why.RECORDS: "the peer's records have another format: the two nodes have different versions of"
    " the project; upgrade the older one",
    Why.KEY: "the peer has another secret: 'key_file' has to hold the same on both nodes",
    Why.SELF: "this is this node itself; take its address out of 'peers'",
    Why.ALREADY: "the peer has a stream with this node already",
    Why.STRANGER: "the peer does not know this node's address: it has to be in its 'peers'",
    Why.BUSY: "the peer has too many handshakes at once",
}


def _raise_if_refused(magic: bytes, number: int) -> None:
    if magic != _REFUSAL:
        return
    try:
        why = Why(number)
    except ValueError:
        raise Refused(Why.GARBAGE, f"the peer refuses, for reason {number}", by_peer=True) from None
    raise Refused(why, _TEXTS[why], by_peer=True)


def _proof(secret: bytes, transcript: bytes, initiator: bool) -> bytes:
    role = b"initiator" if initiator else b"acceptor"
    return _derive(secret, b"proof of the " + role, transcript)


def _derive(secret: bytes, label: bytes, transcript: bytes) -> bytes:
    # Labels contain no zero byte, so two different pairs of label and transcript never give the
    # same input.
    return hmac.digest(secret, b"steelyard flow sync: " + label + b"\0" + transcript, "sha256")
