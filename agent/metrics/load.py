"""Decides the metrics of load: what backends have in front of them, and how long they take."""

from __future__ import annotations

from agent.metrics.family import Family, Kind, each_backend

_BACKEND = ("service", "backend")
_COUNTED = "Absent where the service does not count waiting bytes."

LOAD_FAMILIES: tuple[Family, ...] = (
    Family(
        "steelyard_open_connections",
        Kind.GAUGE,
        "Flows of the backend that are not closing: embryonic, acked or established.",
        _BACKEND,
        each_backend(lambda b: b.load.open),
    ),
    Family(
        "steelyard_load_score",
        Kind.GAUGE,
        "What the scheduler compares; the lowest gets the next flow. Absent where it compares "
        "nothing.",
        _BACKEND,
        each_backend(lambda b: b.load.score),
    ),
    Family(
        "steelyard_waiting_bytes",
        Kind.GAUGE,
        f"Bytes of the requests that wait for the first byte of their answer. {_COUNTED}",
        _BACKEND,
        each_backend(lambda b: b.load.waiting_bytes),
    ),
    Family(
        "steelyard_waiting_requests",
        Kind.GAUGE,
        f"Requests that wait for the first byte of their answer, at most one a flow. {_COUNTED}",
        _BACKEND,
        each_backend(lambda b: b.load.awaiting),
    ),
    Family(
        "steelyard_answers_total",
        Kind.COUNTER,
        "Requests whose answer's first byte was seen.",
        _BACKEND,
        each_backend(lambda b: b.counts.answers),
    ),
    Family(
        "steelyard_first_byte_seconds",
        Kind.HISTOGRAM,
        f"From the last byte of a request to the first byte of its answer. {_COUNTED}",
        _BACKEND,
        each_backend(lambda b: b.load.first_byte),
    ),
    Family(
        "steelyard_handshake_seconds",
        Kind.HISTOGRAM,
        f"From a client's SYN to the ACK with which it ends the handshake. {_COUNTED}",
        _BACKEND,
        each_backend(lambda b: b.load.handshake),
    ),
)
