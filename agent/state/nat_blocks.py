"""Decides which block of ports each source address of fullnat has towards each server.

A server here is an address, port and protocol of backends. Each source address has its own block
towards each server, so a port in use towards one server is free towards all others, as with NAT
in the kernel. The packet path looks for the flow of an answer in the block, so a block must not
change while it may have flows. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from agent.model import ANY_PORT, Forward, Protocol, Service
from agent.state.snapshot import NatPorts
from agent.state.tables import NAT_SOURCES, Blocks, ServiceSlot

_FIRST = {4: 0, 6: NAT_SOURCES}
# Share of ports in use from which on many new flows find none, and below which that is over.
_EXHAUSTED, _RELAXED = 0.95, 0.8


def servers(services: Iterable[Service]) -> list[ServiceSlot]:
    """Return the servers of fullnat, each once; port 0: its service has several ports."""
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
    """Return the blocks of each server; ``held``: those in the tables.

    ``sources``: the numbers of the source addresses. When no block is free, the blocks with the
    fewest users are shared.
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
    """Return the servers as the packet path looks them up: the exact port first, then any port.

    A port of an address that also has an any-port entry has its own blocks only if it had them
    before, and then keeps them. So the blocks found for a port do not change.
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
    """Return the block that the tables have for a server and source; 0: none."""
    every = ServiceSlot(slot.vip, ANY_PORT, slot.protocol)
    for one in (slot, every):
        block = held[one][place] if one in held else 0
        if 0 < block <= number_of_blocks:
            return block
    return 0


def _places(slot: ServiceSlot, sources: list[int]) -> list[int]:
    """Return the positions of the blocks, for sources of the server's address family."""
    first = _FIRST[slot.vip.version]
    return [number - first for number in sources if first <= number < first + NAT_SOURCES]


def exhausted(
    ports: Iterable[NatPorts], before: Mapping[ServiceSlot, str]
) -> dict[ServiceSlot, str]:
    """Return the servers towards which nearly all ports of all sources are in use, each with a
    message; ``before``: those for which that was so at the last look.
    """
    used, total = Counter[ServiceSlot](), Counter[ServiceSlot]()
    for one in ports:
        used[one.server] += one.used
        total[one.server] += one.ports
    return {
        server: f"{used[server]:,} of {number:,} source ports towards {described(server)} are in "
        "use: new connections to it are dropped when there is none"
        for server, number in total.items()
        if used[server] >= (_RELAXED if server in before else _EXHAUSTED) * number
    }


def described(server: ServiceSlot) -> str:
    """Format a server for people: 10.0.0.1:80/tcp, or without the port if there are several."""
    address = f"[{server.vip}]" if server.vip.version == 6 and server.port else str(server.vip)
    port = f":{server.port}" if server.port else ""
    name = next((p.value for p in Protocol if p.number == server.protocol), str(server.protocol))
    return f"{address}{port}/{name}"
