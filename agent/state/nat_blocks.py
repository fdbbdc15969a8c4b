"""Decides which block of ports each source address of fullnat has towards each server.

A server is an address, port and protocol of backends. Each source address has a block of its own
towards each, so that a port in use towards one server is free towards all others, as with NAT in
the kernel. A block is where the packet path looks for the flow of an answer: while there may be
flows it must not change. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from agent.model import ANY_PORT, Forward, Protocol, Service
from agent.state.snapshot import NatPorts
from agent.state.tables import NAT_SOURCES, Blocks, ServiceSlot

_FIRST = {4: 0, 6: NAT_SOURCES}
_EXHAUSTED, _RELAXED = 0.95, 0.8  # of the ports: then many new flows find none; then it is over


def servers(services: Iterable[Service]) -> list[ServiceSlot]:
    """The servers of fullnat, each once; port 0: those of a service with several ports."""
    found: dict[ServiceSlot, None] = {}
    for service in services:
        if service.forward is Forward.FULLNAT:
            key = service.key
            own = ANY_PORT if key.port_last is not None else key.port
            for backend in service.backends:
                slot = ServiceSlot(backend.address, backend.port or own, key.protocol.number)
                found[slot] = None
    return list(found)


def assign(
    services: Iterable[Service],
    sources: Iterable[int],
    held: Mapping[ServiceSlot, Blocks],
    number_of_blocks: int,
) -> dict[ServiceSlot, Blocks]:
    """The blocks of each server; ``held``: what the tables have.

    ``sources``: the numbers of the source addresses. When there are no more blocks, those that the
    fewest have are shared.
    """
    sources = sorted(sources)
    wanted = sorted(_looked_up(servers(services), held), key=_by_address)
    found = {slot: [0] * NAT_SOURCES for slot in wanted}
    used = Counter[int]()
    for slot in wanted:
        for place in _places(slot, sources):
            found[slot][place] = _kept(slot, place, held, number_of_blocks)
            used[found[slot][place]] += 1
    for slot in wanted:
        for place in _places(slot, sources):
            if not found[slot][place]:
                block = min(range(1, number_of_blocks + 1), key=lambda n: used[n])
                found[slot][place] = block
                used[block] += 1
    return {slot: tuple(blocks) for slot, blocks in found.items() if any(blocks)}


def _looked_up(wanted: list[ServiceSlot], held: Mapping[ServiceSlot, Blocks]) -> list[ServiceSlot]:
    """The servers as the packet path looks them up: the port first, then any port.

    Beside any port of an address, a port has its own blocks if it had them before, and keeps
    them: so what is found for a port stays what it was.
    """
    every = {(slot.vip, slot.protocol) for slot in wanted if slot.port == ANY_PORT}
    found = [
        slot
        for slot in wanted
        if slot.port == ANY_PORT or (slot.vip, slot.protocol) not in every or slot in held
    ]
    found += [
        slot
        for slot in held
        if (slot.vip, slot.protocol) in every and slot.port != ANY_PORT and slot not in found
    ]
    return found


def _by_address(slot: ServiceSlot) -> tuple[int, int, int, int]:
    return slot.vip.version, int(slot.vip), slot.protocol, slot.port


def _kept(
    slot: ServiceSlot, place: int, held: Mapping[ServiceSlot, Blocks], number_of_blocks: int
) -> int:
    """The block that is found for it now; 0: none."""
    every = ServiceSlot(slot.vip, ANY_PORT, slot.protocol)
    for one in (slot, every):
        block = held[one][place] if one in held else 0
        if 0 < block <= number_of_blocks:
            return block
    return 0


def _places(slot: ServiceSlot, sources: list[int]) -> list[int]:
    """Where the blocks of the sources of the server's family stand."""
    first = _FIRST[slot.vip.version]
    return [number - first for number in sources if first <= number < first + NAT_SOURCES]


def exhausted(
    ports: Iterable[NatPorts], before: Mapping[ServiceSlot, str]
) -> dict[ServiceSlot, str]:
    """The servers towards which nearly all ports of all sources are in use, and what to say of
    them; ``before``: those that were.
    """
    used, there = Counter[ServiceSlot](), Counter[ServiceSlot]()
    for one in ports:
        used[one.server] += one.used
        there[one.server] += one.ports
    return {
        server: f"{used[server]:,} of {number:,} source ports towards {described(server)} are in "
        "use: new connections to it are dropped when there is none"
        for server, number in there.items()
        if used[server] >= (_RELAXED if server in before else _EXHAUSTED) * number
    }


def described(server: ServiceSlot) -> str:
    """For people: 10.0.0.1:80/tcp, or without a port where there are several."""
    address = f"[{server.vip}]" if server.vip.version == 6 and server.port else str(server.vip)
    port = f":{server.port}" if server.port else ""
    name = next((p.value for p in Protocol if p.number == server.protocol), str(server.protocol))
    return f"{address}{port}/{name}"
