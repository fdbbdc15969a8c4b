"""Decides what a frame of the stream between two balancers is, and which frames are believed.

A frame is a header (length of the payload, kind, sequence number), the payload, and the
HMAC-SHA-256 of both under the key of its direction and session. What is replayed, left out,
reordered, changed or cut off is no frame.
"""

from __future__ import annotations

import enum
import hmac
import struct
from dataclasses import dataclass

HEADER = struct.Struct("!IB3xQ")
TAG_BYTES = 32
RECORDS_BYTES = 256 * 1024  # of flows in one frame, at most
_CONTROL_BYTES = 16 * 1024
IDENTITIES_BYTES = 8 * 2**20  # of all services and backends that a node can have


class Kind(enum.IntEnum):
    """What the payload is. The first four are data: they are acknowledged and count as credit."""

    IDENTITIES = 1  # what the sender's ids stand for, before the records that name them
    FULL_BEGIN = 2  # from here to FULL_END: all flows
    RECORDS = 3  # flows that are new, have changed or have ended
    FULL_END = 4
    ACK = 5
    HEARTBEAT = 6
    TAKE = 7  # become master
    GIVE = 8  # have me become master
    ANSWER = 9  # to TAKE or GIVE
    BYE = 10  # the sender stops
    RESYNC = 11  # send everything again: ids mean something now that meant nothing before
    BLOCKS = 12  # of sources, new and undone; for those who say that they take them


DATA = frozenset((Kind.IDENTITIES, Kind.FULL_BEGIN, Kind.RECORDS, Kind.FULL_END))
_MOST_BYTES = {
    Kind.IDENTITIES: IDENTITIES_BYTES,
    Kind.RECORDS: RECORDS_BYTES,
    Kind.BLOCKS: 8 * 2**20,  # 4,096 with the longest reasons
}


class Fault(enum.Enum):
    """Why a stream is not believed any more; a metric's label."""

    SIZE = "size"  # longer than its kind may be
    KIND = "kind"
    SEQUENCE = "sequence"  # replayed, left out, reordered
    AUTHENTICATION = "authentication"  # not sent by who knows the secret, or changed on the way
    TRUNCATED = "truncated"
    CONTENT = "content"  # authentic, and yet it makes no sense
    WINDOW = "window"  # more than was acknowledged


class FrameError(Exception):
    """The stream cannot go on."""

    def __init__(self, fault: Fault, text: str) -> None:
        super().__init__(text)
        self.fault = fault


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame that is believed."""

    kind: Kind
    sequence: int
    payload: bytes


class Sealer:
    """Makes the frames of one direction."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.sequence = 0  # of the newest frame

    def seal(self, kind: Kind, payload: bytes = b"") -> bytes:
        """The next frame; FrameError if it is too long to be one."""
        if len(payload) > most_bytes(kind):
            raise FrameError(Fault.SIZE, f"{kind.name} of {len(payload)} bytes is too long")
        self.sequence += 1
        body = HEADER.pack(len(payload), kind, self.sequence) + payload
        return body + hmac.digest(self._key, body, "sha256")


class Opener:
    """Believes or refuses the frames of one direction."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.sequence = 0  # of the newest frame that was believed

    def rest_bytes(self, header: bytes) -> int:
        """How many bytes follow a header; FrameError if no frame begins like this.

        Nothing of it is authentic yet, but it bounds what is read.
        """
        length, number, sequence = HEADER.unpack(header)
        try:
            kind = Kind(number)
        except ValueError:
            raise FrameError(Fault.KIND, f"a frame of the unknown kind {number}") from None
        if length > most_bytes(kind):
            raise FrameError(Fault.SIZE, f"{kind.name} of {length} bytes is too long")
        if sequence != self.sequence + 1:
            raise FrameError(
                Fault.SEQUENCE, f"frame {sequence} came where {self.sequence + 1} was due"
            )
        return int(length) + TAG_BYTES

    def open(self, header: bytes, rest: bytes) -> Frame:
        """The frame, of a header that ``rest_bytes`` took and so many bytes more."""
        length, number, sequence = HEADER.unpack(header)
        told = hmac.new(self._key, header, "sha256")
        told.update(memoryview(rest)[:length])
        if not hmac.compare_digest(told.digest(), rest[length:]):
            raise FrameError(
                Fault.AUTHENTICATION, "a frame that was not made with this session's key"
            )
        self.sequence = sequence
        return Frame(Kind(number), sequence, rest[:length])


def most_bytes(kind: Kind) -> int:
    """How long a payload of that kind may be."""
    return _MOST_BYTES.get(kind, _CONTROL_BYTES)
