"""Interfaces of this host, as the kernel tells of them."""

from __future__ import annotations

import socket
import threading

from agent.failover.process.links import Interface, Links


def test_two_threads_that_ask_get_each_its_own_answer() -> None:
    links = Links()
    names = ("lo", "no-such-one")
    found: dict[str, list[Interface | None]] = {name: [] for name in names}

    def ask(name: str) -> None:
        found[name] += [links.interface(name) for _ in range(100)]

    threads = [threading.Thread(target=ask, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    links.close()
    ifindex = socket.if_nametoindex("lo")
    assert [each.ifindex for each in found["lo"] if each] == [ifindex] * 100
    assert found["no-such-one"] == [None] * 100
