"""fullnat: which source and port a flow goes on with, and whose answer a packet to one is."""

from __future__ import annotations

from dataclasses import dataclass

from tests.packet.model.flows import Flow, FlowTable
from tests.packet.model.services import Member

TRIES = 32  # so many ports are looked at for a free one


@dataclass(frozen=True, slots=True)
class Holder:
    """What a port was given to; the flow may have gone from its place since."""

    flow: Flow
    member: Member
    protocol: int
    vip_port: int


class Ports:
    """``sources``: the balancer's addresses by number; a port is (number of the source, port)."""

    def __init__(self, sources: dict[int, str], ports: range, table: FlowTable) -> None:
        self.sources = sources
        self.ports = ports
        self.table = table
        self.holders: dict[tuple[int, int], Holder] = {}

    def number_of(self, address: str) -> int | None:
        return next((n for n, source in self.sources.items() if source == address), None)

    def flow_at(self, port: tuple[int, int]) -> Flow | None:
        """The recorded flow that a port was given to, if it is still at that backend."""
        holder = self.holders.get(port)
        if holder is None:
            return None
        flow = self.table.slots.get(holder.flow.place)
        is_same = flow and flow.is_flow(holder.flow) and flow.member is holder.member
        return flow if is_same else None

    def _is_held(self, port: tuple[int, int], now: int) -> bool:
        holder = self.holders.get(port)
        if holder is None:
            return False
        flow = self.table.slots.get(holder.flow.place)
        is_same = flow and flow.is_flow(holder.flow) and flow.port == port
        return bool(flow and is_same and flow.is_in_the_way(now))

    def keeps(self, flow: Flow) -> bool:
        """Has the flow a port that it must keep?"""
        return flow.port is not None and self.flow_at(flow.port) is flow

    def give(self, flow: Flow, port: tuple[int, int] | None, now: int) -> bool:
        """Note down the port that was chosen (None: none is free); whether that is legal."""
        if port is None:
            flow.port = None
            own = [n for n in self.sources if (n < 8) == (":" not in flow.ends.src)]
            every = [(n, p) for n in own for p in self.ports]
            return sum(self._is_held(one, now) for one in every) >= min(TRIES, len(every))
        number, value = port
        is_ours = number in self.sources and value in self.ports
        is_family = is_ours and (":" in self.sources[number]) == (":" in flow.ends.src)
        holder = self.holders.get(port)
        is_own = holder is not None and holder.flow.is_flow(flow)
        is_legal = is_family and (is_own or not self._is_held(port, now))
        flow.port = port
        self.holders[port] = Holder(flow, flow.member, flow.ends.protocol, flow.ends.dport)
        return is_legal
