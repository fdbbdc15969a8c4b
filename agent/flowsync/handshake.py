"""Decides how two balancers convince each other that they know the secret, and agree on a session.

    initiator                         acceptor
    HELLO (versions, name, nonce) →
                                    ← HELLO
    PROOF (HMAC of both hellos)   →
                                    ← PROOF

What stands before the secret is proven is bounded, and the first 12 bytes and the field
``project`` are the same in every version: two versions that cannot talk can still say so.
"""

from __future__ import annotations

import enum
import hmac
import json
import struct
from dataclasses import dataclass

from agent.flowsync.framing import Opener, Sealer

PROTOCOL = 1
PREFIX = struct.Struct("!8sHH")  # what it is, a number, bytes that follow
PROOF_BYTES = 32
MOST_BYTES = 1024  # that follow a prefix
_NONCE_BYTES = 32
_LONGEST_NAME = 128
_LONGEST_VERSION = 32  # it stands in the log before anything is proven
_HELLO, _PROOF, _REFUSAL = b"STEELYHI", b"STEELYOK", b"STEELYNO"


class Why(enum.IntEnum):
    """Why a stream did not come about; the number goes over the wire, the word is a label."""

    GARBAGE = 1  # no handshake of ours
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
    """No stream. ``told``: whether the peer said so, or we did."""

    def __init__(self, why: Why, text: str, *, told: bool = False) -> None:
        super().__init__(text)
        self.why = why
        self.told = told


@dataclass(frozen=True, slots=True)
class Hello:
    """How a balancer presents itself."""

    project: str  # version of the project
    protocol: int
    records: int  # version of the records
    name: str
    process: str  # drawn anew by each process: who meets it has met itself
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
    """What both ends have agreed on, each with its own view."""

    peer: Hello
    sealer: Sealer
    opener: Opener


def rest_bytes(prefix: bytes) -> int:
    """How many bytes follow; Refused if nobody of ours speaks so."""
    magic, _, length = PREFIX.unpack(prefix)
    if magic not in (_HELLO, _PROOF, _REFUSAL) or length > MOST_BYTES:
        raise Refused(Why.GARBAGE, "what came is no handshake of a balancer")
    return int(length)


def read_hello(prefix: bytes, body: bytes) -> Hello:
    """The peer's hello; Refused if it is none, or says that we are refused."""
    magic, number, _ = PREFIX.unpack(prefix)
    _raise_if_told(magic, number)
    try:
        said = json.loads(body)
        hello = Hello(
            project=printable(str(said["project"]), _LONGEST_VERSION),
            protocol=number,
            records=int(said.get("records", 0)),
            name=printable(str(said.get("name", ""))),
            process=printable(str(said.get("process", ""))),
            nonce=bytes.fromhex(said.get("nonce", "")),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        hello = None  # OverflowError: JSON has an Infinity here
    if magic != _HELLO or hello is None:
        raise Refused(Why.GARBAGE, "what came is no hello of a balancer")
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
    """Says to who has heard the same hellos that we know the secret."""
    return PREFIX.pack(_PROOF, 0, PROOF_BYTES) + _proof(secret, transcript, initiator)


def check_proof(
    secret: bytes, transcript: bytes, prefix: bytes, body: bytes, *, initiator: bool
) -> None:
    """Raise Refused unless it is the proof of the initiator, or of the acceptor."""
    magic, number, _ = PREFIX.unpack(prefix)
    _raise_if_told(magic, number)
    if magic != _PROOF:
        raise Refused(Why.GARBAGE, "what came is no proof of a balancer")
    if not hmac.compare_digest(body, _proof(secret, transcript, initiator)):
        raise Refused(Why.KEY, _TEXTS[Why.KEY])


def pack_refusal(why: Why) -> bytes:
    return PREFIX.pack(_REFUSAL, why, 0)


def agree(secret: bytes, transcript: bytes, peer: Hello, *, initiator: bool) -> Session:
    """The session of who has heard these hellos and both proofs."""
    own, other = (b"initiator", b"acceptor") if initiator else (b"acceptor", b"initiator")
    return Session(
        peer,
        Sealer(_derive(secret, b"frames of the " + own, transcript)),
        Opener(_derive(secret, b"frames of the " + other, transcript)),
    )


def printable(text: str, longest: int = _LONGEST_NAME) -> str:
    """Another node's text as it may stand in a log."""
    return "".join(char if char.isprintable() else "?" for char in text[:longest])


_TEXTS = {
    Why.GARBAGE: "the peer takes what we say for no handshake; is it an older version?",
    Why.PROTOCOL: "the peer speaks another protocol: the two nodes have different versions of the"
    " project; upgrade the older one",
    Why.RECORDS: "the peer has other records: the two nodes have different versions of the"
    " project; upgrade the older one",
    Why.KEY: "the peer has another secret: 'key_file' has to hold the same on both nodes",
    Why.SELF: "this is this node itself; take its address out of 'peers'",
    Why.ALREADY: "the peer has a stream with this node already",
    Why.STRANGER: "the peer does not know this node's address: it has to be in its 'peers'",
    Why.BUSY: "the peer has too many handshakes at once",
}


def _raise_if_told(magic: bytes, number: int) -> None:
    if magic != _REFUSAL:
        return
    try:
        why = Why(number)
    except ValueError:
        raise Refused(Why.GARBAGE, f"the peer refuses, for reason {number}", told=True) from None
    raise Refused(why, _TEXTS[why], told=True)


def _proof(secret: bytes, transcript: bytes, initiator: bool) -> bytes:
    role = b"initiator" if initiator else b"acceptor"
    return _derive(secret, b"proof of the " + role, transcript)


def _derive(secret: bytes, label: bytes, transcript: bytes) -> bytes:
    # The label has no zero in it, so no label and transcript look like another pair.
    return hmac.digest(secret, b"steelyard flow sync: " + label + b"\0" + transcript, "sha256")
