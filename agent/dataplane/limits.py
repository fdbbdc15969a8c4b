"""Owns the limits of services in the shared tables: the rates, the counts of what was beyond a
limit, and the sources that have as much as they may.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from agent.dataplane import abi
from agent.dataplane.abi import LIMIT_BUCKETS, LIMIT_PERIODS, Limit
from agent.dataplane.constants import LIMITED
from agent.dataplane.tables import SharedTables
from agent.model import RATE_PERIODS, Address, Limits, Rate

_NS = 1_000_000_000
HELD_NS = 15 * _NS
_UNITS = _NS / 128  # units of the packet path's clock in a second
_PERIODS = tuple(RATE_PERIODS)  # LIMIT_PERIODS of them

type Counts = npt.NDArray[np.uint64]


def rates_of(limits: Limits) -> dict[Limit, Rate]:
    """Return the limits that are rates, which the packet path counts by itself."""
    rates = {
        Limit.NEW_SOURCE: limits.new_flows_per_source,
        Limit.NEW_PREFIX: limits.new_flows_per_prefix,
        Limit.NEW_SERVICE: limits.new_flows,
        Limit.PACKETS: limits.packets_per_source,
    }
    return {limit: rate for limit, rate in rates.items() if rate is not None}


def set_rates(tables: SharedTables, wanted: Mapping[int, Limits]) -> None:
    """Set the rates, by service id; services that are not named have none."""
    rows = np.zeros(len(tables.service_limits), dtype=abi.SERVICE_LIMITS)
    for ident, limits in wanted.items():
        for limit, rate in rates_of(limits).items():
            period, place = round(rate.period_s * _UNITS), _PERIODS.index(rate.period_s)
            interval = max(period // rate.events, 1)
            rows["interval"][ident, limit] = interval
            rows["ahead"][ident, limit] = interval * (rate.events - 1)
            rows["first"][ident, limit] = (
                LIMIT_BUCKETS * LIMIT_PERIODS + place * tables.size.services
                if limit is Limit.NEW_SERVICE
                else LIMIT_BUCKETS * place
            )
    for name in ("first", "ahead", "interval"):
        tables.service_limits[name] = rows[name]


def begin_counting(tables: SharedTables, salts: Mapping[int, int]) -> None:
    """Start the counts of new services at 0, so that none gets those of a service that had its id
    before.

    ``salts``: the flow salts, by service id.
    """
    owners = tables.limit_count[-1]["salt"]
    for ident, salt in salts.items():
        if int(owners[ident]) != salt:
            tables.limit_count[:, ident] = np.zeros((), dtype=abi.LIMIT_COUNTERS)
            owners[ident] = salt


def counts(tables: SharedTables) -> tuple[Counts, Counts]:
    """Return the packets that were beyond a limit, by service id and ``Limit``: those that were
    dropped, and those that would have been.
    """
    rows = tables.limit_count
    return rows["dropped"].sum(axis=0), rows["would_drop"].sum(axis=0)


def set_limited(
    tables: SharedTables, wanted: Mapping[bytes, int], now_ns: int, for_ns: int = HELD_NS
) -> None:
    """Refuse new flows of these (source, service), and of no others, for these limits.

    It holds for ``for_ns``; call it again before half of that is over. ``now_ns``: CLOCK_MONOTONIC.
    """
    wanted = dict(itertools.islice(wanted.items(), LIMITED))
    present = {key: _limited(value) for key, value in tables.items("limited")}
    for key in present.keys() - wanted.keys():
        tables.delete("limited", key)
    for key, bits in wanted.items():
        until_ns, was = present.get(key, (0, 0))
        if was != bits or until_ns < now_ns + for_ns // 2:
            row = np.zeros(1, dtype=abi.LIMITED)
            row["until"], row["limits"] = now_ns + for_ns, bits
            tables.put("limited", key, row.tobytes())


def limited_key(ident: int, source: Address) -> bytes:
    """Return the key of a source in the table ``limited``."""
    key = np.zeros(1, dtype=abi.LIMITED_KEY)
    words = np.frombuffer(source.packed[:8].ljust(8, bytes(1)), dtype=">u4")
    key["addr"], key["service"], key["family"] = words, ident, source.version
    return key.tobytes()


def is_limited(tables: SharedTables, ident: int, source: Address) -> bool:
    """Return whether the source may begin no flow at the service, because of what it has there."""
    value = tables.get("limited", limited_key(ident, source))
    return value is not None and _limited(value)[0] > time.monotonic_ns()


def _limited(value: bytes) -> tuple[int, int]:
    row = np.frombuffer(value, dtype=abi.LIMITED)[0]
    return int(row["until"]), int(row["limits"])


def sources_of(limited: Mapping[bytes, int]) -> Counter[tuple[int, Limit]]:
    """Return how many sources are refused, by service id and limit."""
    counts: Counter[tuple[int, Limit]] = Counter()
    idents = np.frombuffer(b"".join(limited), dtype=abi.LIMITED_KEY)["service"].tolist()
    for (ident, bits), sources in Counter(zip(idents, limited.values(), strict=True)).items():
        for limit in Limit:
            counts[ident, limit] += sources * (bits >> limit & 1)
    return counts
