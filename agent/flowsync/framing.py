"""Defines the frames of the stream between two balancers, and decides which frames are accepted.

A frame is a header (length of the payload, kind, sequence number), the payload, and the
HMAC-SHA-256 of both under the key of its direction and session. Frames that are replayed, left
out, reordered, changed or cut off are detected and end the stream.
"""

from __future__ import annotations

import enum
import hmac
import struct
from dataclasses import dataclass

HEADER = struct.Struct("!IB3xQ")
TAG_BYTES = 32
RECORDS_BYTES = 256 * 1024  # most bytes of flow records in one frame
_CONTROL_BYTES = 16 * 1024
IDENTITIES_BYTES = 8 * 2**20  # room for all services and backends that a node can have


class Kind(enum.IntEnum):
    """What the payload is. The first four are data: they are acknowledged, and they use credit."""

    IDENTITIES = 1  # what the sender's ids stand for, before the records that name them
    FULL_BEGIN = 2  # from here to FULL_END: all flows
    RECORDS = 3  # flows that are new, have changed or have ended
    FULL_END = 4
    ACK = 5
    HEARTBEAT = 6
    TAKE = 7  # asks the receiver to become master
    GIVE = 8  # asks the receiver to let the sender become master
    ANSWER = 9  # to TAKE or GIVE
    BYE = 10  # the sender stops
    RESYNC = 11  # send everything again: ids that meant nothing to the sender before now do
    BLOCKS = 12  # blocks of sources, new and lifted; only for peers that say that they take them
    SPEEDS = 13  # what was learned of backends' speeds; likewise


DATA = frozenset((Kind.IDENTITIES, Kind.FULL_BEGIN, Kind.RECORDS, Kind.FULL_END))
_MOST_BYTES = {
    Kind.IDENTITIES: IDENTITIES_BYTES,
    Kind.RECORDS: RECORDS_BYTES,
    Kind.BLOCKS: 8 * 2**20,  # 4,096 blocks with the longest reasons
    Kind.SPEEDS: 2**20,
}


class Fault(enum.Enum):
    """Why a stream is no longer trusted; the value is a metric's label."""

    SIZE = "size"  # longer than its kind may be
    KIND = "kind"  # unknown
    SEQUENCE = "sequence"  # replayed, left out, reordered
    AUTHENTICATION = "authentication"  # the sender lacks the secret, or it was changed on the way
    TRUNCATED = "truncated"
    CONTENT = "content"  # authentic, but it makes no sense
    WINDOW = "window"  # the peer sent more than its credit


class FrameError(Exception):
    """The stream cannot go on."""

    def __init__(self, fault: Fault, text: str) -> None:
        super().__init__(text)
        self.fault = fault


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame that has been authenticated."""

    kind: Kind
    sequence: int
    payload: bytes


class Sealer:
    """Makes the frames of one direction."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.sequence = 0  # number of the newest frame

    def seal(self, kind: Kind, payload: bytes = b"") -> bytes:
        """Return the next frame. FrameError if the payload is too long."""
        if len(payload) > most_bytes(kind):
            raise FrameError(Fault.SIZE, f"{kind.name} of {len(payload)} bytes is too long")
        self.sequence += 1
        body = HEADER.pack(len(payload), kind, self.sequence) + payload
        return body + hmac.digest(self._key, body, "sha256")


class Opener:
    """Accepts or refuses the frames of one direction."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.sequence = 0  # number of the newest frame that was accepted

    def rest_bytes(self, header: bytes) -> int:
        """Return how many bytes follow a header. FrameError if no valid frame begins like this.

        The header is not authenticated yet, but the check bounds how much is read.
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
        """Return the frame made of a header that ``rest_bytes`` accepted and the bytes after it.
        FrameError if its HMAC is wrong.
        """
        length, number, sequence = HEADER.unpack(header)
        digest = hmac.new(self._key, header, "sha256")
        digest.update(memoryview(rest)[:length])
        if not hmac.compare_digest(digest.digest(), rest[length:]):
            raise FrameError(
                Fault.AUTHENTICATION, "a frame that was not made with this session's key"
            )
        self.sequence = sequence
        return Frame(Kind(number), sequence, rest[:length])


def most_bytes(kind: Kind) -> int:
    """Return how long a payload of that kind may be."""
    return _MOST_BYTES.get(kind, _CONTROL_BYTES)
