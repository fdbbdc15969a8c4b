"""Decides from the answers to a service's clients how much a client's home is worth. Pure.

An engine keeps the keys and values of prompts that it has processed, so the next request of a
conversation costs it less than it costs another server. With affinity a new flow goes to its home
unless the home has more waiting bytes in front of it than that saves. How much it saves shows in
the answers: for requests of the same size and at the same load, a backend answers clients that it
has answered before sooner than clients that are new to it. A line fitted to the samples gives the
time for both, and the time that a waiting byte takes.

Clients are remembered by a hash of their address. If many of them share one address, hardly any
request is from a new client. Then nothing is learned, and a home is worth ``GRANTED``.

What is learned feeds back on what can be learned: if many flows go elsewhere, each server has a
little of every conversation, homes are worth less, and still more flows go elsewhere. So requests
of clients that were answered elsewhere in between are left out, and if clients are clearly answered
sooner at home, a home is worth at least ``LEAST_KNOWN``.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np

from agent.weights.fit import Floats, parts_of
from agent.weights.learn import Samples

GRANTED = 1.0  # usual requests that a home is worth until more is known
LEAST, MOST = 1.0, 8.0  # bounds, in usual requests
LEAST_KNOWN = 2.0  # the lower bound if clients are answered clearly sooner at home
_CLEARLY = 0.75  # sooner means at most this share of the time of a new client's request
# A client that goes elsewhere also costs other clients: those that wait behind it there, and those
# whose prompts its own prompt displaces. Counting the same amount again for them did best in
# bench/affinity.py.
_FOR_OTHERS = 1.0
LEAST_BYTES, MOST_BYTES = 256, 1 << 24

REMEMBERED = 65_536  # pairs of client and backend, per service
KEPT = 2048  # samples per service
_HALF_LIFE = KEPT / 3  # in samples: one that is so many samples old counts half
_ENOUGH = 16.0  # with so many samples of one kind, its factor of the belief is a half
_BELIEVED = 0.5  # from this belief on, the times are shown
# Errors larger than this times the scatter count less. It is wide, because clients at their home
# get two kinds of answers.
_CLIPPED = 4.0
_LEAST_SCATTER = 0.3
_FIRST_PARTS = (0.3, 0.15, 0.15, 0.4)  # shares of a usual time: load, new, known, the rest

_AHEAD, _OPEN, _BYTES, _CLIENT, _SECONDS = range(5)  # columns of Answers.rows


class Client(enum.IntEnum):
    """Whether the backend that answers a request has answered its client before."""

    NEW = 0
    KNOWN = 1
    BACK = 2  # known, but another backend has answered it since


@dataclass(slots=True)
class Memory:
    """Which backend has answered which client, by a hash of the client's address and the backend's
    id. The least recently used entry is dropped first.
    """

    _seen: OrderedDict[tuple[int, int], None] = field(default_factory=OrderedDict)
    _last: OrderedDict[int, int] = field(default_factory=OrderedDict)  # the backend, by client

    def clients(self, backend: int, sources: np.ndarray) -> np.ndarray:
        """Return a ``Client`` value for each request, given the hashes of the requests' clients in
        order, and remember them.
        """
        found = np.zeros(len(sources), dtype=np.int8)
        for place, source in enumerate(sources.tolist()):
            if (source, backend) in self._seen:
                stayed = self._last.get(source) == backend
                found[place] = Client.KNOWN if stayed else Client.BACK
            _renew(self._seen, (source, backend), None)
            _renew(self._last, source, backend)
        return found


def _renew[K, V](held: OrderedDict[K, V], key: K, value: V) -> None:
    held[key] = value
    held.move_to_end(key)
    if len(held) > REMEMBERED:
        held.popitem(last=False)


@dataclass(frozen=True, slots=True)
class Worth:
    """What is known about one service's homes.

    ``requests``: by how many usual requests a home may have more waiting in front of it.
    ``usual_bytes``: the size of a usual request. ``new_s``, ``known_s``: seconds that a usual
    request takes by itself at a server that its client is new to, and at one that knows the client;
    None: not known. ``known_share``: the share of requests that came to a server that knew their
    client.
    """

    requests: float = GRANTED
    usual_bytes: float = field(kw_only=True)
    new_s: float | None = None
    known_s: float | None = None
    known_share: float | None = None

    @property
    def bytes(self) -> int:
        """How many more waiting bytes a home may have than another server."""
        return min(max(round(self.requests * self.usual_bytes), LEAST_BYTES), MOST_BYTES)


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """The samples of one service that are kept, the oldest first, shape (n, 5), with the columns
    that ``_AHEAD`` and the names beside it number; start with ``Answers()``.
    """

    rows: Floats = field(default_factory=lambda: np.empty((0, 5)))

    def then(self, samples: Samples, clients: np.ndarray) -> Answers:
        """Return these with new samples added; ``clients`` has a ``Client`` value for each."""
        columns = (samples.ahead, samples.open - 1, samples.bytes, clients, samples.seconds)
        rows = np.concatenate((self.rows, np.stack(columns, axis=1).astype(float)))
        return Answers(rows[-KEPT:])


def worth(answers: Answers, usual_bytes: float, bytes_per_connection: float) -> Worth:
    """Return what the answers say about the homes' worth.

    ``bytes_per_connection`` is that of the load score; it turns the waiting bytes and the open
    connections in front of a request into one number.
    """
    rows = answers.rows
    if not len(rows):
        return Worth(usual_bytes=usual_bytes)
    weights = np.exp2((np.arange(len(rows)) + 1 - len(rows)) / _HALF_LIFE)
    share = float(weights @ (rows[:, _CLIENT] != Client.NEW) / weights.sum())
    stayed = rows[:, _CLIENT] != Client.BACK
    rows, weights = rows[stayed], weights[stayed]
    if not len(rows):
        return Worth(usual_bytes=usual_bytes, known_share=share)
    is_known, own = rows[:, _CLIENT] == Client.KNOWN, rows[:, _BYTES]
    before = rows[:, _AHEAD] + rows[:, _OPEN] * bytes_per_connection
    columns = np.stack((before, own * ~is_known, own * is_known, np.ones_like(own)), axis=1)
    per_byte_ahead, per_byte_new, per_byte_known, _ = parts_of(
        columns,
        rows[:, _SECONDS],
        weights,
        _FIRST_PARTS,
        trusted_to=_CLIPPED,
        least_scatter=_LEAST_SCATTER,
    ).tolist()
    new, known = float(weights[~is_known].sum()), float(weights[is_known].sum())
    belief = new / (new + _ENOUGH) * known / (known + _ENOUGH)
    of_known = float(weights[is_known] @ own[is_known] / known) if known else usual_bytes
    saved_s = max(per_byte_new - per_byte_known, 0.0) * of_known
    lost_s = saved_s * (1 + _FOR_OTHERS)
    # If a byte in front seems to take longer than a new client's own byte, that has another cause:
    # the engine's batch is full.
    per_byte_ahead = min(per_byte_ahead, per_byte_new)
    lost = MOST
    if lost_s < MOST * usual_bytes * per_byte_ahead:
        lost = lost_s / (usual_bytes * per_byte_ahead)
    if per_byte_known <= _CLEARLY * per_byte_new:
        lost = max(lost, LEAST_KNOWN)
    requests = min(max(GRANTED + belief * (lost - GRANTED), LEAST), MOST)
    if belief < _BELIEVED:
        return Worth(requests, usual_bytes=usual_bytes, known_share=share)
    return Worth(
        requests,
        usual_bytes=usual_bytes,
        new_s=per_byte_new * usual_bytes,
        known_s=per_byte_known * usual_bytes,
        known_share=share,
    )
