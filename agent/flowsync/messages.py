"""Defines the contents of the small frames, and decides which of them are valid."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any

from agent.failover.model import Method, Role
from agent.failover.syncstatus import RouterReport
from agent.flowsync.framing import Fault, FrameError, Kind, most_bytes
from agent.flowsync.handshake import printable
from agent.model import BackendRef
from agent.state.blocks import Blocks, from_json, to_json
from agent.weights.speeds import LEAST, MOST, Learned, Speeds

_LONGEST_TEXT = 1000
_MOST_REASONS = 32
_MOST_INSTANCES = 128
_HEAD = re.compile(r"[0-9]{1,18}:[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Ack:
    """Acknowledges that data frames up to ``sequence`` are installed, with the outcome of those
    that no earlier Ack covered.
    """

    sequence: int
    installed: int
    dropped: Mapping[str, int]  # by reason


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Shows that the sender is alive, and what it announces about itself.

    Times are on the sender's monotonic clock, except ``echo_s``, which is on the receiver's.
    ``echo_s``: ``sent_s`` of the newest heartbeat that the sender got, which was ``kept_s`` ago.
    ``lag_s``: the age of the sender's newest state that the receiver is known to have completely.
    ``instances``: names of the sender's failover instances; None: too many, or the sender's version
    does not announce them. ``routers``: the state of its virtual routers ``routers_age_s`` before
    this was sent; None: likewise, or the sender does not know it. ``takes_at``: the port at which
    it takes packets of flows that the receiver does not know; 0: it takes none, or its version does
    not announce it. ``takes_blocks`` and ``takes_speeds``: whether it takes BLOCKS and SPEEDS
    frames. ``audit_head``: the head of the sender's audit log, ``NUMBER:HASH``; empty: unknown.
    """

    sent_s: float
    echo_s: float | None
    kept_s: float
    lag_s: float | None
    instances: tuple[str, ...] | None = None
    routers: tuple[RouterReport, ...] | None = None
    routers_age_s: float = 0.0
    takes_at: int = 0
    takes_blocks: bool = False
    audit_head: str = ""
    takes_speeds: bool = False


@dataclass(frozen=True, slots=True)
class Ask:
    """A TAKE or a GIVE, for one instance or for all (None)."""

    id: int
    instance: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to the Ask with that id."""

    id: int
    done: bool
    text: str


def tellable[T](items: Iterable[T]) -> tuple[T, ...] | None:
    """Return instance names or virtual routers as a tuple, or None if a heartbeat has no room."""
    found = tuple(items)
    return found if len(found) <= _MOST_INSTANCES else None


def pack(message: Ack | Heartbeat | Ask | Answer) -> bytes:
    """Return the message as the payload of a frame."""
    if isinstance(message, Answer):
        message = replace(message, text=message.text[:_LONGEST_TEXT])
    data = asdict(message)
    if isinstance(message, Heartbeat) and message.routers is not None:
        # The names of the fields are left out, so that there is room for many routers.
        data["routers"] = [astuple(router) for router in message.routers]
    packed = json.dumps(data, default=lambda word: word.value).encode()
    if isinstance(message, Heartbeat) and len(packed) > most_bytes(Kind.HEARTBEAT):
        return pack(replace(message, routers=None))
    return packed


def unpack_ack(payload: bytes) -> Ack:
    def read(fields: Mapping[str, Any]) -> Ack:
        dropped = dict(fields["dropped"])
        if len(dropped) > _MOST_REASONS:
            raise ValueError("too many reasons")
        return Ack(
            _count(fields["sequence"]),
            _count(fields["installed"]),
            {printable(str(reason)): _count(number) for reason, number in dropped.items()},
        )

    return _read(payload, read)


def unpack_heartbeat(payload: bytes) -> Heartbeat:
    def read(fields: Mapping[str, Any]) -> Heartbeat:
        echo, lag = fields["echo_s"], fields["lag_s"]
        return Heartbeat(
            _time(fields["sent_s"]),
            None if echo is None else _time(echo),
            _time(fields["kept_s"]),
            None if lag is None else _time(lag),
            _names(fields.get("instances")),
            _routers(fields.get("routers")),
            max(0.0, _time(fields.get("routers_age_s", 0.0))),
            _count(fields.get("takes_at", 0)),
            fields.get("takes_blocks") is True,
            _head(fields.get("audit_head")),
            fields.get("takes_speeds") is True,
        )

    return _read(payload, read)


def unpack_ask(payload: bytes) -> Ask:
    def read(fields: Mapping[str, Any]) -> Ask:
        instance = fields["instance"]
        return Ask(_count(fields["id"]), None if instance is None else printable(str(instance)))

    return _read(payload, read)


def unpack_answer(payload: bytes) -> Answer:
    def read(fields: Mapping[str, Any]) -> Answer:
        text = printable(str(fields["text"]), _LONGEST_TEXT)
        return Answer(_count(fields["id"]), fields["done"] is True, text)

    return _read(payload, read)


def pack_blocks(blocks: Blocks) -> bytes:
    """Return the blocks as the payload of a frame."""
    return json.dumps({"blocks": to_json(blocks)}).encode()


def unpack_blocks(payload: bytes) -> Blocks:
    def read(fields: Mapping[str, Any]) -> Blocks:
        return {
            prefix: replace(block, why=printable(block.why, _LONGEST_TEXT))
            for prefix, block in from_json(fields["blocks"]).items()
        }

    return _read(payload, read)


def pack_speeds(speeds: Speeds) -> bytes:
    """Return what was learned as the payload of a frame."""
    found = [
        [ref.service, ref.backend, one.weight_share, one.bytes_per_connection]
        for ref, one in speeds.items()
    ]
    return json.dumps({"speeds": found}).encode()


def unpack_speeds(payload: bytes) -> Speeds:
    """Return what a peer has learned."""

    def read(fields: Mapping[str, Any]) -> Speeds:
        return {
            BackendRef(str(service), str(backend)): Learned(
                min(max(_time(share), LEAST), MOST), None if worth is None else _worth(worth), 0.0
            )
            for service, backend, share, worth, *_ in fields["speeds"]
        }

    return _read(payload, read)


def _worth(value: Any) -> int:
    if not 0 < _count(value) < 2**32:
        raise ValueError("no bytes per connection")
    return int(value)


def _read[T](payload: bytes, read: Callable[[Mapping[str, Any]], T]) -> T:
    try:
        return read(json.loads(payload))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FrameError(Fault.CONTENT, f"a frame that makes no sense: {error!r}") from error


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**64:
        raise ValueError("no count")
    return value


def _head(value: Any) -> str:
    """Return the head of an audit log, or an empty text if it is none."""
    is_head = isinstance(value, str) and _HEAD.fullmatch(value)
    return value if is_head else ""


def _names(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) > _MOST_INSTANCES:
        raise ValueError("no names")
    return tuple(printable(str(name)) for name in value)


def _routers(value: Any) -> tuple[RouterReport, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) > _MOST_INSTANCES:
        raise ValueError("no virtual routers")
    words = (_router(each) for each in value)
    return tuple(word for word in words if word is not None)


def _router(fields: list[Any]) -> RouterReport | None:
    """Return a virtual router, or None if its method or role is one that only later versions know.
    Later versions may also send more fields for each router.
    """
    instance, family, method, role, priority, well, vouched, *rest = fields
    vrid, version, interval_s, authentication, vips, *_ = rest
    try:
        what, is_now = Method(method), Role(role)
    except ValueError:
        return None
    return RouterReport(
        printable(str(instance)),
        _count(family),
        what,
        is_now,
        _count(priority),
        well is True,
        vouched is True,
        _count(vrid),
        _count(version),
        _time(interval_s),
        printable(str(authentication)),
        printable(str(vips)),
    )


def _time(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError("no time")
    return float(value)
