"""The client against real etcd: what happens to members, histories, leases, users and TLS."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

import pytest

from agent.errors import CompactedError, LeaseLostError, StoreError, UncertainError
from agent.fleet import gateway
from agent.fleet.etcd import Change, Client, Row
from agent.model import Etcd
from lbctl.lab import netns
from tests.netns.etcdcluster import Cluster, certificates, cluster, needs_etcd

PREFIX = "/steelyard/test/"
LIMIT_S = 300.0  # ends a test that would wait for ever

pytestmark = [pytest.mark.kernel, needs_etcd]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits for a slow member, where it would go to another one or give up."""
    for name in ("CONNECT_S", "ANSWER_S", "CALL_S"):
        monkeypatch.setattr(gateway, name, 60.0)


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    with cluster() as made:
        yield made


@pytest.fixture
def three(shared: Cluster) -> Cluster:
    """Three members that run, without keys."""
    shared.start()
    run(shared, lambda client: client.delete("", "\x7f"))
    return shared


def run[T](
    at: Cluster, use: Callable[[Client], Awaitable[T]], etcd: Etcd | None = None, first: int = 0
) -> T:
    async def body() -> T:
        client = Client(etcd or at.etcd, PREFIX, first)
        try:
            async with asyncio.timeout(LIMIT_S):
                return await use(client)
        finally:
            await client.close()

    with netns.inside(at.namespace):
        return asyncio.run(body())


async def eventually[T](attempt: Callable[[], Awaitable[T]]) -> T:
    """Return the result of the first attempt that etcd answers."""
    while True:
        with suppress(StoreError):
            return await attempt()
        await asyncio.sleep(0.1)


# -- keys


@pytest.mark.usefixtures("patient")
def test_of_two_writers_one_wins(three: Cluster) -> None:
    async def use(client: Client) -> None:
        base = await client.put("active", b"1")
        won = [
            await client.commit({"active": base, "log/2": 0}, {"active": each, "log/2": each})
            for each in (b"a", b"b")
        ]
        assert won == [base + 1, None]
        found = await client.list("")
        assert found.rows == (Row("active", b"a", base + 1), Row("log/2", b"a", base + 1))
        assert found.revision == base + 1
        assert await client.commit({"active": base + 1}, {}, ["log/2", "active"]) == base + 2
        assert (await client.get("active")).rows == ()

    run(three, use)


@pytest.mark.usefixtures("patient")
def test_a_list_comes_in_pieces_and_from_its_end(three: Cluster) -> None:
    names = [f"log/{number:03}" for number in range(25)]

    async def use(client: Client) -> None:
        for name in (*names, "log", "logs", "snap/1"):
            await client.put(name, b"x" * 1000)
        found: list[str] = []
        while rows := (await client.list("log/", after=found[-1] if found else "", limit=10)).rows:
            found += [row.key for row in rows]
        assert found == names
        last = await client.list("log/", newest_first=True, limit=2, keys_only=True)
        assert [(row.key, row.value) for row in last.rows] == [("log/024", b""), ("log/023", b"")]
        assert await client.delete("log/000", "log/020") == 20
        assert await client.delete("log/020") == 1
        assert await client.delete("log/020") == 0
        assert len((await client.list("log/", serializable=True)).rows) == 4

    run(three, use)


@pytest.mark.usefixtures("patient")
def test_a_change_that_is_too_large_is_refused(three: Cluster) -> None:
    async def use(client: Client) -> None:
        for size in (int(1.7 * (1 << 20)), 2 << 20):  # etcd has two limits
            with pytest.raises(StoreError, match=r"larger than max|too large") as caught:
                await client.commit({}, {"log/1": b"x" * size})
            assert not isinstance(caught.value, UncertainError)
            assert "--max-request-bytes" in caught.value.remedy
        assert (await client.get("log/1")).rows == ()
        large = await client.commit({}, {"log/1": b"x" * (1 << 20)})
        assert large
        assert len((await client.get("log/1")).rows[0].value) == 1 << 20

    run(three, use)


# -- watches


async def surely(client: Client, key: str, number: int) -> int:
    """Commit once, also if a leader that stood still costs an answer; return the revision."""

    async def attempt() -> int:
        revision = await client.commit({key: 0}, {key: b"x", "active": b"%d" % number})
        # None: an earlier attempt, whose answer was lost, has made it.
        return revision or (await client.get(key)).rows[0].revision

    return await eventually(attempt)


@pytest.mark.usefixtures("patient")
def test_a_watch_sees_every_change_in_order(three: Cluster) -> None:
    async def use(client: Client) -> None:
        before = await client.put("log/000", b"before")
        # etcd sends at most 1,000 revisions at once.
        revisions = [await surely(client, f"log/{each:04}", each) for each in range(1, 1101)]
        async with aclosing(client.watch("", before + 1)) as watch:
            seen: list[Change] = []
            reached = 0
            while len(seen) < 2 * len(revisions):
                reached, changes = await anext(watch)
                seen += changes
                assert reached == changes[-1].revision
            assert sorted({each.revision for each in seen}) == revisions
            assert [each.revision for each in seen] == sorted(each.revision for each in seen)
            assert seen[-2:] == [
                Change("log/1100", b"x", revisions[-1]),
                Change("active", b"1100", revisions[-1]),
            ]
            await client.delete("active")
            assert await anext(watch) == (reached + 1, (Change("active", None, reached + 1),))

    run(three, use)


@pytest.mark.usefixtures("patient")
def test_a_watch_from_before_the_compaction(three: Cluster) -> None:
    async def use(client: Client) -> None:
        first = await client.put("active", b"1")
        await client.put("active", b"2")
        oldest = await asyncio.to_thread(three.compact)
        assert oldest > first
        async with aclosing(client.watch("", first)) as watch:
            with pytest.raises(CompactedError):
                await anext(watch)
        listing = await client.list("")
        async with aclosing(client.watch("", listing.revision + 1)) as watch:
            change = await client.put("active", b"3")
            assert await anext(watch) == (change, (Change("active", b"3", change),))

    run(three, use)


@pytest.mark.usefixtures("patient")
def test_a_watch_ends_when_its_member_loses_the_others(three: Cluster) -> None:
    async def use(client: Client) -> str:
        revision = await client.put("active", b"1")
        async with aclosing(client.watch("", revision)) as watch:
            await anext(watch)
            await asyncio.to_thread(three.kill, 1, 2)
            with pytest.raises(StoreError) as caught:
                await anext(watch)
            return caught.value.message

    assert "no leader" in run(three, use)


# -- members


@pytest.mark.usefixtures("patient")
def test_after_the_leaders_death_the_next_read_and_commit_succeed(three: Cluster) -> None:
    leader = three.leader()

    async def use(client: Client) -> None:
        base = await client.put("active", b"1")
        await asyncio.to_thread(three.kill, leader)
        found = await eventually(lambda: client.get("active"))  # waits for an election
        assert found.rows[0].revision == base
        assert await client.commit({"active": base}, {"active": b"2"}) == base + 1

    run(three, use, first=leader)


def test_a_member_that_hangs_costs_one_time_limit(three: Cluster) -> None:
    leader = three.leader()
    three.pause(leader)

    async def use(client: Client) -> None:
        await eventually(lambda: client.put("active", b"1"))
        for _ in range(20):  # no longer asks the one that hangs
            found = await eventually(lambda: client.get("active"))
            assert found.rows[0].value == b"1"

    try:
        run(three, use, first=leader)
    finally:
        three.resume(leader)
        three.wait()


def test_a_commit_to_a_member_that_hangs_is_uncertain_and_not_written_twice(
    three: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy host a connection may take longer than usual, and then another member is asked.
    monkeypatch.setattr(gateway, "CONNECT_S", 60.0)
    three.pause(1)

    async def use(client: Client) -> None:
        with pytest.raises(UncertainError):
            await client.commit({"log/1": 0}, {"log/1": b"first"})
        await eventually(lambda: client.commit({"log/1": 0}, {"log/1": b"second"}))
        three.resume(1)
        await asyncio.to_thread(three.wait)
        (row,) = (await eventually(lambda: client.get("log/1"))).rows
        assert row.value == b"second"

    try:
        run(three, use, first=1)
    finally:
        three.resume(1)


@pytest.mark.usefixtures("patient")
def test_without_a_majority_nothing_is_written_and_old_rows_can_be_read(three: Cluster) -> None:
    async def use(client: Client) -> None:
        await client.put("active", b"1")
        await asyncio.to_thread(three.kill, 1, 2)
        with pytest.raises(StoreError) as caught:
            await client.put("active", b"2")
        assert caught.value.remedy
        old = await client.get("active", serializable=True)
        assert old.rows[0].value == b"1"
        await asyncio.to_thread(three.start, 1, 2)
        assert await eventually(lambda: client.put("active", b"3"))

    run(three, use)


@pytest.mark.usefixtures("patient")
def test_without_any_member_the_error_names_them(three: Cluster) -> None:
    three.kill()

    async def use(client: Client) -> str:
        with pytest.raises(StoreError) as caught:
            await client.commit({}, {"active": b"1"})
        assert not isinstance(caught.value, UncertainError)
        return str(caught.value)

    began = time.monotonic()
    said = run(three, use)
    assert time.monotonic() - began < LIMIT_S / 2
    assert "connection refused" in said
    assert all(endpoint in said for endpoint in three.endpoints)
    assert "remedy" in said


# -- leases


@pytest.mark.usefixtures("patient")
def test_a_lease_that_nobody_keeps_alive_takes_its_keys_with_it(three: Cluster) -> None:
    async def use(client: Client) -> None:
        kept, left = await client.grant(60), await client.grant(10)
        await client.put("agents/lb1", b"{}", lease=kept)
        revision = await client.put("agents/lb2", b"{}", lease=left)
        assert await client.keep_alive(kept) == 60
        async with aclosing(client.watch("agents/", revision + 1)) as watch:
            _, changes = await anext(watch)
        assert [(each.key, each.value) for each in changes] == [("agents/lb2", None)]
        with pytest.raises(LeaseLostError):
            await client.keep_alive(left)
        with pytest.raises(LeaseLostError):
            await client.put("agents/lb2", b"{}", lease=left)
        await client.revoke(kept)
        await client.revoke(kept)
        assert (await client.list("agents/")).rows == ()

    run(three, use)


# -- TLS and users


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Etcd]]:
    """One member with TLS, client certificates, and the user ``lb`` who may use our prefix."""
    folder = tmp_path_factory.mktemp("tls")
    with cluster(members=1, tls=certificates(folder)) as made:
        for words in (
            "user add root --new-user-password admin",
            "user grant-role root root",
            "role add lb",
            f"role grant-permission lb readwrite {PREFIX} --prefix",
            "user add lb --new-user-password secret",
            "user grant-role lb lb",
            "auth enable",
        ):
            made.etcdctl(*words.split())
        password = folder / "password"
        password.write_text("secret\n")
        password.chmod(0o600)
        yield made, replace(made.etcd, user="lb", password_file=password)


@pytest.mark.usefixtures("patient")
def test_a_user_with_a_certificate_uses_the_prefix_and_nothing_else(
    secured: tuple[Cluster, Etcd],
) -> None:
    made, etcd = secured

    async def use(client: Client) -> None:
        lease = await client.grant(60)
        base = await client.put("agents/lb1", b"{}", lease=lease)
        async with aclosing(client.watch("", base)) as watch:
            assert (await anext(watch))[1] == (Change("agents/lb1", b"{}", base),)
        assert await client.commit({"active": 0}, {"active": b"1"}) == base + 1
        assert await client.keep_alive(lease) > 0
        await client.revoke(lease)

    run(made, use, etcd)

    async def outside() -> None:
        client = Client(etcd, "/other/")
        try:
            for attempt in (client.get("x"), client.put("x", b""), client.commit({}, {"x": b""})):
                with pytest.raises(StoreError, match="permission denied") as caught:
                    await attempt
                assert "grant-permission" in caught.value.remedy
            async with aclosing(client.watch("", 1)) as watch:
                with pytest.raises(StoreError, match="permission denied"):
                    await anext(watch)
        finally:
            await client.close()

    with netns.inside(made.namespace):
        asyncio.run(outside())


@pytest.mark.usefixtures("patient")
def test_a_token_that_a_restart_has_forgotten_is_renewed(secured: tuple[Cluster, Etcd]) -> None:
    made, etcd = secured

    async def use(client: Client) -> None:
        await client.get("active")
        await asyncio.to_thread(made.stop)
        await asyncio.to_thread(made.start)
        await client.get("active")
        await client.get("active")

    run(made, use, etcd)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    ("change", "message", "remedy"),
    [
        ({"user": None, "password_file": None}, "user name is empty", "set 'user'"),
        ({"user": "who"}, "authentication failed", "'password_file'"),
        ({"cert": None}, "certificate required", "'cert_file'"),
        ({"cert": "named"}, "CommonName of client", "without a CN"),
        ({"ca_file": None}, "TLS certificate not accepted", "'ca_file'"),
        ({"http": True}, "connection closed before an answer", "etcdctl --endpoints http://"),
    ],
)
def test_what_does_not_fit_is_named(
    secured: tuple[Cluster, Etcd], change: dict[str, Any], message: str, remedy: str
) -> None:
    made, etcd = secured
    if "cert" in change:
        name = change["cert"]
        assert etcd.ca_file is not None
        files = {
            key: name and etcd.ca_file.with_name(f"{name}.{end}")
            for key, end in (("cert_file", "pem"), ("key_file", "key"))
        }
        etcd = replace(etcd, **files)
    elif "http" in change:
        etcd = Etcd(endpoints=tuple(each.replace("https", "http") for each in etcd.endpoints))
    else:
        etcd = replace(etcd, **change)

    async def use(client: Client) -> StoreError:
        with pytest.raises(StoreError) as caught:
            await client.get("active")
        return caught.value

    error = run(made, use, etcd)
    assert message in error.message
    assert remedy in error.remedy


async def fill(client: Client) -> None:
    for each in range(20):
        await client.commit({}, {f"log/{each}": b"x" * 500_000})


@pytest.mark.usefixtures("patient")
def test_a_database_that_is_full_says_so() -> None:
    with cluster(members=1, options=("--quota-backend-bytes", "1000000")) as made:

        async def use(client: Client) -> StoreError:
            with pytest.raises(StoreError) as caught:
                await fill(client)
            assert (await client.get("log/0")).rows
            return caught.value

        error = run(made, use)
        assert "database space exceeded" in error.message
        assert "etcdctl alarm disarm" in error.remedy
        assert not isinstance(error, UncertainError)
