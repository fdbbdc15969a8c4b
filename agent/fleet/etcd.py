"""Reads and changes keys in etcd. It decides how a request is said in etcd's JSON.

In that JSON, keys and values are in base64, and 64-bit numbers are strings. Members, TLS and errors
are the business of ``agent.fleet.gateway``.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass

from agent.errors import LeaseLostError
from agent.fleet.gateway import Gateway, Json
from agent.model import Etcd


@dataclass(frozen=True, slots=True)
class Row:
    """One key: its name without the client's prefix, and the revision that last changed it."""

    key: str
    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Listing:
    """Rows, and the revision of the store at which they were read."""

    revision: int
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """What a watch has seen happen to a key; ``value`` None: it was deleted."""

    key: str
    value: bytes | None
    revision: int


class Client:
    """Reads and changes the keys below a prefix; all keys here are relative to it.

    Every method raises StoreError if no member answers, or if etcd refuses. ``first``: the number
    of the member that is asked first. It belongs to one event loop, and has to be closed.
    """

    def __init__(self, etcd: Etcd, prefix: str, first: int = 0) -> None:
        self._gateway = Gateway(etcd, first)
        self._prefix = prefix

    async def close(self) -> None:
        """Close all connections."""
        await self._gateway.close()

    # -- reading

    async def get(self, key: str, *, serializable: bool = False) -> Listing:
        """Return one key, or no row if it does not exist.

        ``serializable``: what the member has, which may be older, but needs no other member.
        """
        body = {"key": self._name(key), "serializable": serializable}
        return await self._gateway.call("kv/range", body, self._listing)

    async def list(
        self,
        prefix: str,
        *,
        after: str = "",
        newest_first: bool = False,
        limit: int = 0,
        keys_only: bool = False,
        serializable: bool = False,
    ) -> Listing:
        """Return the keys that begin with ``prefix`` in their order.

        ``after``: only keys behind this one. ``newest_first``: the last key comes first.
        ``limit``: no more rows than this; 0: all. An answer has to fit in 64 MiB, so many large
        values must be read in pieces. ``keys_only``: values are empty.
        """
        body = {
            "key": self._name(f"{after}\0" if after else prefix),
            "range_end": self._end(prefix),
            "limit": str(limit),
            "keys_only": keys_only,
            "serializable": serializable,
            "sort_target": "KEY",
            "sort_order": "DESCEND" if newest_first else "ASCEND",
        }
        return await self._gateway.call("kv/range", body, self._listing)

    async def watch(
        self, prefix: str, revision: int
    ) -> AsyncGenerator[tuple[int, tuple[Change, ...]]]:
        """Yield the changes of keys that begin with ``prefix``, from ``revision`` on.

        With them comes the revision up to which all changes have been yielded. Without changes, it
        only says that nothing has happened until then. All changes of a revision come together.
        Raises CompactedError if etcd no longer has ``revision``, StoreError when the watch ends.
        It stays silent if its connection has died unnoticed.
        """
        request = {
            "key": self._name(prefix),
            "range_end": self._end(prefix),
            "start_revision": str(revision),
            "progress_notify": True,
        }
        watch = self._gateway.watch({"create_request": request}, self._changes)
        async with aclosing(watch) as messages:
            async for message in messages:
                yield message

    # -- changing

    async def put(self, key: str, value: bytes, lease: int | None = None) -> int:
        """Write a key, and return the revision.

        With a lease, the key is deleted when the lease ends; LeaseLostError if it has ended. If a
        member does not answer, the next one is asked, so it may be written twice, or late.
        """
        body = {"key": self._name(key), "value": _base64(value)}
        if lease is not None:
            body["lease"] = str(lease)
        return await self._gateway.call("kv/put", body, _revision)

    async def commit(
        self, unchanged: Mapping[str, int], puts: Mapping[str, bytes], deletes: Iterable[str] = ()
    ) -> int | None:
        """Make all changes at once, or none, and return the revision.

        ``unchanged``: the revision that last changed each of these keys, 0: it does not exist.
        None is returned, and nothing changed, if one of them differs. Raises UncertainError if it
        is not known whether the changes were made.
        """
        compare = [
            {
                "key": self._name(key),
                "target": "MOD",
                "result": "EQUAL",
                "mod_revision": str(revision),
            }
            for key, revision in unchanged.items()
        ]
        changes: list[Json] = [
            {"request_put": {"key": self._name(key), "value": _base64(value)}}
            for key, value in puts.items()
        ]
        changes += [{"request_delete_range": {"key": self._name(key)}} for key in deletes]
        body = {"compare": compare, "success": changes}
        return await self._gateway.call("kv/txn", body, _committed, is_repeatable=False)

    async def delete(self, key: str, end: str | None = None) -> int:
        """Delete a key, or all keys from it up to but without ``end``; return how many existed."""
        body = {"key": self._name(key)}
        if end is not None:
            body["range_end"] = self._name(end)
        return await self._gateway.call(
            "kv/deleterange", body, lambda answer: int(answer.get("deleted", 0))
        )

    # -- leases

    async def grant(self, ttl_s: int) -> int:
        """Return a new lease, which ends after ``ttl_s`` unless it is kept alive."""
        return await self._gateway.call(
            "lease/grant", {"TTL": str(ttl_s)}, lambda answer: int(answer["ID"])
        )

    async def keep_alive(self, lease: int) -> float:
        """Let a lease begin anew, and return for how many seconds it is valid now.

        Raises LeaseLostError if it has ended.
        """
        ttl_s = await self._gateway.call(
            "lease/keepalive", {"ID": str(lease)}, lambda answer: float(answer.get("TTL", 0))
        )
        if ttl_s <= 0:
            raise LeaseLostError("the lease has ended", where="etcd", remedy="grant a new lease")
        return ttl_s

    async def revoke(self, lease: int) -> None:
        """End a lease, which deletes its keys; it may have ended already."""
        with suppress(LeaseLostError):
            await self._gateway.call("lease/revoke", {"ID": str(lease)}, _revision)

    # -- keys and rows

    def _name(self, key: str) -> str:
        return _base64(f"{self._prefix}{key}".encode())

    def _end(self, prefix: str) -> str:
        """Return the first key behind all that begin with ``prefix``."""
        name = f"{self._prefix}{prefix}".encode()  # no byte of UTF-8 is 0xff
        return _base64(name[:-1] + bytes((name[-1] + 1,)))

    def _key(self, kv: Json) -> str:
        name = base64.b64decode(kv["key"], validate=True).decode()
        if not name.startswith(self._prefix):
            raise ValueError("a key outside of the prefix")
        return name.removeprefix(self._prefix)

    def _listing(self, answer: Json) -> Listing:
        rows = (
            Row(self._key(kv), _value(kv), int(kv["mod_revision"])) for kv in answer.get("kvs", ())
        )
        return Listing(_revision(answer), tuple(rows))

    def _changes(self, message: Json) -> tuple[int, tuple[Change, ...]]:
        changes = tuple(self._change(event) for event in message.get("events", ()))
        # With changes, the header has the revision of the store, whose changes may still follow.
        return changes[-1].revision if changes else _revision(message), changes

    def _change(self, event: Json) -> Change:
        kv, is_deleted = event["kv"], event.get("type") == "DELETE"
        return Change(self._key(kv), None if is_deleted else _value(kv), int(kv["mod_revision"]))


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _value(kv: Json) -> bytes:
    return base64.b64decode(kv.get("value", ""), validate=True)


def _revision(answer: Json) -> int:
    return int(answer["header"]["revision"])


def _committed(answer: Json) -> int | None:
    return _revision(answer) if answer.get("succeeded") else None
