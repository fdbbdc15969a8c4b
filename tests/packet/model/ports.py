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


type Port = tuple[int, int]  # number of the source, port
type Server = tuple[str, int, int]  # a backend's address, port and protocol


class Ports:
    """``sources``: the balancer's addresses by number. ``several``: addresses and protocols of
    backends that have several ports, and the same of ours for all of these.
    """

    def __init__(
        self,
        sources: dict[int, str],
        ports: range,
        table: FlowTable,
        several: frozenset[tuple[str, int]],
    ) -> None:
        self.sources = sources
        self.ports = ports
        self.table = table
        self.several = several
        self.holders: dict[tuple[Server, Port], Holder] = {}

    def server_of(self, address: str, port: int, protocol: int) -> Server:
        return address, 0 if (address, protocol) in self.several else port, protocol

    def _server(self, flow: Flow) -> Server:
        port = flow.member.port or flow.ends.dport
        return self.server_of(flow.member.address, port, flow.ends.protocol)

    def number_of(self, address: str) -> int | None:
        return next((n for n, source in self.sources.items() if source == address), None)

    def flow_at(self, server: Server, port: Port) -> Flow | None:
        """The recorded flow that a port was given to, if it is still at that backend."""
        holder = self.holders.get((server, port))
        if holder is None:
            return None
        flow = self.table.slots.get(holder.flow.place)
        is_same = flow and flow.is_flow(holder.flow) and flow.member is holder.member
        return flow if is_same else None

    def _is_held(self, server: Server, port: Port, now: int) -> bool:
        holder = self.holders.get((server, port))
        if holder is None:
            return False
        flow = self.table.slots.get(holder.flow.place)
        if not flow or not flow.is_flow(holder.flow) or not flow.is_in_the_way(now):
            return False
        if flow.state == "embryonic":
            return False  # it may be a stranger's
        # It may have moved to another backend, where it can have the same port.
        return flow.port == port and flow.port_towards == server

    def keeps(self, flow: Flow) -> bool:
        """Has the flow a port that it must keep?"""
        if flow.port is None or flow.port_towards != self._server(flow):
            return False
        return self.flow_at(flow.port_towards, flow.port) is flow

    def give(self, flow: Flow, port: Port | None, now: int) -> bool:
        """Note down the port that was chosen (None: none is free); whether that is legal."""
        server = self._server(flow)
        if port is None:
            flow.port = None
            own = [n for n in self.sources if (n < 8) == (":" not in flow.ends.src)]
            every = [(n, p) for n in own for p in self.ports]
            held = sum(self._is_held(server, one, now) for one in every)
            return held >= min(TRIES, len(every))
        number, value = port
        is_ours = number in self.sources and value in self.ports
        is_family = is_ours and (":" in self.sources[number]) == (":" in flow.ends.src)
        holder = self.holders.get((server, port))
        is_own = holder is not None and holder.flow.is_flow(flow)
        is_legal = is_family and (is_own or not self._is_held(server, port, now))
        flow.port, flow.port_towards = port, server
        self.holders[server, port] = Holder(flow, flow.member, flow.ends.protocol, flow.ends.dport)
        return is_legal
