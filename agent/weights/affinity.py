"""Decides how much a client's home is worth, from its clients' own answers. Pure.

An engine keeps the keys and values of prompts that it has worked through, so the next request of a
conversation costs it less than it costs another server. With affinity a new flow goes home unless
its home has more waiting bytes in front of it than that is worth. How much it is worth shows in
the answers: those to clients that the backend has answered before come sooner, of the same size
and at the same load, than those to clients that are new to it. A line through the samples says
both, and what a waiting byte takes.

Clients are remembered by a hash of their address. Where many of them share one address, hardly any
request is from a new client: nothing is learned, and a home is worth ``GRANTED``.

What is learned also changes what there is to learn: where many flows go elsewhere, each server has
a little of every conversation, homes are worth less, and still more flows go elsewhere. So requests
of clients that were answered elsewhere in between are left out, and where clients are clearly
answered sooner at home, a home is worth at least ``LEAST_KNOWN``.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np

from agent.weights.fit import Floats, parts_of
from agent.weights.learn import Samples

GRANTED = 1.0  # a home is worth a usual request, until it is known better
LEAST, MOST = 1.0, 8.0  # and never less or more of them
LEAST_KNOWN = 2.0  # nor less than this where clients are answered clearly sooner at home
_CLEARLY = 0.75  # of the time that a new client's request takes by itself
# A client that goes elsewhere costs others as well: those who wait behind it there, and those
# whose prompts its own displaces. As much again did best in bench/affinity.py.
_FOR_OTHERS = 1.0
LEAST_BYTES, MOST_BYTES = 256, 1 << 24

REMEMBERED = 65_536  # clients at backends, of a service
KEPT = 2048  # samples of a service
_HALF_LIFE = KEPT / 3  # of them: one so many samples old counts half
_ENOUGH = 16.0  # samples of each kind: with so many of one, half is believed
_BELIEVED = 0.5  # from here on the times are shown
_CLIPPED = 4.0  # errors that large count less: answers to clients of a home are of two kinds
_LEAST_SCATTER = 0.3
_FIRST_PARTS = (0.3, 0.15, 0.15, 0.4)  # of a usual time: load, new, known, the rest

_AHEAD, _OPEN, _BYTES, _CLIENT, _SECONDS = range(5)  # columns of Answers.rows


class Client(enum.IntEnum):
    """What a request's client is to the backend that answers it."""

    NEW = 0
    KNOWN = 1
    BACK = 2  # known, but another backend has answered it since


@dataclass(slots=True)
class Memory:
    """Who has been answered where: by a hash of the client's address and the backend's id. What
    was not asked for longest gives way.
    """

    _seen: OrderedDict[tuple[int, int], None] = field(default_factory=OrderedDict)
    _last: OrderedDict[int, int] = field(default_factory=OrderedDict)  # the backend, by client

    def clients(self, backend: int, sources: np.ndarray) -> np.ndarray:
        """Of each request, in order: what its client is to that backend (``Client``)."""
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
    """What is known of one service's homes.

    ``requests``: how many usual requests' bytes a home may have more in front of it.
    ``usual_bytes``: of a request. ``new_s``, ``known_s``: seconds that a usual request takes by
    itself at a server that its client is new to, and at one that knows it; None: not known.
    ``known_share``: of the requests, those that came to a server that knew their client.
    """

    requests: float = GRANTED
    usual_bytes: float = field(kw_only=True)
    new_s: float | None = None
    known_s: float | None = None
    known_share: float | None = None

    @property
    def bytes(self) -> int:
        """How many waiting bytes a home may have more than another server."""
        return min(max(round(self.requests * self.usual_bytes), LEAST_BYTES), MOST_BYTES)


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """The samples of one service that are kept, the oldest first; start with ``Answers()``."""

    rows: Floats = field(default_factory=lambda: np.empty((0, 5)))

    def then(self, samples: Samples, clients: np.ndarray) -> Answers:
        """With those that came since, and what their clients were (``Client``)."""
        columns = (samples.ahead, samples.open - 1, samples.bytes, clients, samples.seconds)
        rows = np.concatenate((self.rows, np.stack(columns, axis=1).astype(float)))
        return Answers(rows[-KEPT:])


def worth(answers: Answers, usual_bytes: float, bytes_per_connection: float) -> Worth:
    """What the answers say. ``bytes_per_connection``: as the load score has it, so that what is
    in front of a request is one number.
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
    # A byte in front that seems to take longer than a new client's own byte tells of something
    # else: the places in the batch have run out.
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
