"""Changes under traffic: every packet meets the old tables or the new ones, never a mixture."""

from __future__ import annotations

import asyncio
import random
import threading

import pytest

from agent.dataplane import libbpf
from agent.model import AdminState
from tests.packet.frames import ACK, FIN, SYN, Segments
from tests.packet.harness import Rig, Verdict, backend, mac_of, service


@pytest.mark.parametrize("changes", [40, pytest.param(500, marks=pytest.mark.soak)])
def test_no_packet_is_lost_or_goes_astray_while_the_tables_change(rig: Rig, changes: int):
    a, b = backend("a"), backend("b")
    others = [backend(name) for name in "cdefgh"]
    stable = service(backend("z"), name="stable", port=81)
    rig.serve(service(a, b), stable)
    known = {bytes.fromhex(mac_of(m.address).replace(":", "")) for m in (a, b, *others)}
    mac_z = bytes.fromhex(mac_of(stable.backends[0].address).replace(":", ""))
    stop, wrong = threading.Event(), []
    fd = rig.dataplane.program.fd

    def traffic(seed: int) -> None:
        draw = random.Random(seed)
        segments, at_stable = Segments(), Segments(port=81)
        while not stop.is_set():
            client, port = bytes([10]) + draw.randbytes(3), draw.randrange(1, 65_536)
            flags = draw.choice((SYN, ACK, FIN | ACK))
            for which, macs in ((segments, known), (at_stable, {mac_z})):
                done = libbpf.test_run(fd, which.frame(client, port, flags))
                if done.verdict != Verdict.TX or done.data[:6] not in macs:
                    wrong.append((done.verdict, done.data[:6].hex()))

    threads = [threading.Thread(target=traffic, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    draw = random.Random(9)
    try:
        for _ in range(changes):
            some = draw.sample(others, draw.randrange(len(others)))
            weight = draw.choice((1, 50, 1000))
            drained = [
                backend(m.name, str(m.address), admin=draw.choice(list(AdminState))) for m in some
            ]
            first = backend("a", str(a.address), weight=weight)
            down = draw.choice(((), ("c", "d"), ("e",)))
            rig.serve(service(first, b, *drained), stable, down=down)
            rig.now_s += 1
            asyncio.run(rig.reconciler.sweep(rig.survey()))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert sum(rig.reasons().values()) == 0


def test_a_hundred_services_come_and_go_under_traffic(rig: Rig):
    """Service entries are replaced whole: a neighbour's traffic never sees them."""
    stable = service(backend("z"))
    rig.serve(stable)
    segments = Segments()
    for n in range(100):
        others = [service(backend(f"x{m}"), name=f"s{m}", port=1000 + m) for m in range(n % 10)]
        rig.serve(stable, *others)
        frame = segments.frame(bytes([10]) + random.Random(n).randbytes(3), 1024 + n, SYN)
        assert rig.backend_of(frame) == "z"
    assert rig.counts("z").packets == 100
