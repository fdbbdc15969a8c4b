"""Shows each frame to the kernel and to the model, and compares what they make of it.

The only module here that knows the tables: it tells the model what is configured, and what the
kernel has chosen where it may choose.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from ipaddress import ip_network

import numpy as np

from agent.companion.keys import Keys as CookieKeys
from agent.companion.keys import packed as cookie_row
from agent.dataplane import abi, contents
from agent.dataplane.constants import Clock, HashKeys
from agent.dataplane.libbpf import TestRun
from agent.dataplane.program import Dataplane
from agent.dataplane.tables import BootSettings
from agent.model import NoBackend, Rate, Scheduler, Service, SynProtection, Timeouts, Zone
from tests.packet.frames import BALANCER4, BALANCER6, BALANCER_MAC
from tests.packet.harness import Rig, Verdict, mac_of
from tests.packet.model.flows import Flow, Keys
from tests.packet.model.services import STATES, Member, Target
from tests.packet.model.walk import IllegalError, Model, Outcome
from tests.packet.records import rested
from tests.packet.wires import Tags

NO_TICK = 40  # of 2^40 jiffies: none ends while a test runs
KEYS = HashKeys(0x0123456789ABCDEF, 0xD1342543DE82EF95, 0xAF251AF3B0F025B5)
_STATES = {1: "embryonic", 2: "established", 3: "closing", 5: "acked", 6: "established",
           7: "closing"}  # fmt: skip


class StillDataplane(Dataplane):
    """Its clock stands still: time passes only when the test says so. No secrets, either: the
    same history meets the same buckets each time.
    """

    def _first_settings(self) -> BootSettings:
        return BootSettings(KEYS, Clock(self.clock_source.measure_hz(), NO_TICK))


def timeouts_of(clock: Clock, embryonic: int, acked: int, established: int, closing: int
                ) -> Timeouts:  # fmt: skip
    """So many ticks each."""
    return Timeouts(*((n - 0.5) * clock.tick_s for n in (embryonic, acked, established, closing)))


def _bytes_of(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _difference(frame: bytes, wanted: Outcome, verdict: str, got: bytes) -> str:
    pairs = zip(wanted.frame, got, strict=False)
    at = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(wanted.frame), len(got)))
    return (
        f"{wanted.reason or 'forwarded'}: wanted {wanted.verdict} ({len(wanted.frame)} bytes), got "
        f"{verdict} ({len(got)}), from byte {at} {wanted.frame[at : at + 20].hex()} != "
        f"{got[at : at + 20].hex()}, for {frame.hex()}"
    )


@dataclass(frozen=True, slots=True)
class Surroundings:
    """``elsewhere``: backends at another interface; ``vlans``: tags on the way to one."""

    mtu: int = 1500
    elsewhere: Collection[str] = ()
    vlans: Mapping[str, Tags] | None = None
    zones: tuple[Zone, ...] = ()


class Mirror:
    """A rig and its model. Names of backends are unique among all services."""

    def __init__(
        self,
        rig: Rig,
        services: tuple[Service, ...],
        around: Surroundings | None = None,
        down: Collection[str] = (),
    ) -> None:
        self.rig = rig
        self.around = around or Surroundings()
        self.services = services
        self.found: Counter[str] = Counter()
        self.held = False  # new flows are held back
        self._serve(down)
        self.members: dict[str, Member] = {}
        self.targets = tuple(self._target(each) for each in services)
        self.ids = {
            name: rig.backend_id(name, each.name)
            for each in services
            for name in (b.name for b in each.backends)
        }
        self._names = {ident: name for name, ident in self.ids.items()}
        self._macs = {member.head[:6]: member for member in self.members.values()}
        keys, size = rig.dataplane.keys, rig.dataplane.size
        self._ports = range(size.nat_first_port, size.nat_first_port + size.nat_ports)
        sources = {
            number: str(address)
            for number, address in contents.read(rig.tables).nat_sources.items()
        }
        self.model = Model(
            self.targets,
            {number: str(address) for number, address in sources.items()},
            self._ports,
            Keys(keys.key, keys.mul0, keys.mul1, size.flow_buckets),
            self.around.zones,
        )  # fmt: skip
        row = cookie_row(CookieKeys((self.model.cookie_key,)), 0)
        rig.tables.cookie_secret.view("u1")[:] = bytearray(row)
        self._read_rings(down)

    # -- what is configured

    def _serve(self, down: Collection[str]) -> None:
        around = self.around
        self.rig.serve(
            *self.services, down=down, mtu=around.mtu, vlans=around.vlans, zones=around.zones,
            ifindexes=dict.fromkeys(around.elsewhere, self.rig.dataplane.ifindex + 1),
        )  # fmt: skip

    def _target(self, each: Service) -> Target:
        key, is_source = each.key, each.scheduler is Scheduler.SOURCE
        width = key.vip.max_prefixlen
        is_known = each.scheduler is Scheduler.MAGLEV or (is_source and not each.source_bound)
        return Target(
            name=each.name,
            network=ip_network((key.vip, width if key.vip_bits is None else key.vip_bits)),
            first=key.port,
            last=key.port_last or key.port or 65_535,
            protocol=key.protocol.number,
            forward=each.forward.value,
            members=tuple(self._member(each, n) for n in range(len(each.backends))),
            resets=each.no_backend is NoBackend.RESET,
            holds=each.no_backend is NoBackend.HOLD,
            scheduler=each.scheduler.value if is_known else "any",
            source_bits=each.source_bits or width,
            seed=self.rig.config.hash_seed or 0,
            salt=self.rig.salt(each.name),
            timeouts={
                state: self.rig.clock.ticks(getattr(each.timeouts, f"{state}_s"))
                for state in STATES
            },
            number=self.rig.service_id(each.name),
            challenges=each.syn_protection is SynProtection.ALWAYS,
            cookies=each.gives_cookies,
            allow=each.allow,
            deny=each.deny,
            guard=each.guard.value,
            most={
                field.name: rate.events
                for field in fields(each.limits)
                if isinstance(rate := getattr(each.limits, field.name), Rate)
            },
        )

    def _member(self, each: Service, number: int) -> Member:
        backend = each.backends[number]
        tags = (self.around.vlans or {}).get(backend.name, ())
        head = _bytes_of(mac_of(backend.address)) + _bytes_of(BALANCER_MAC)
        head += b"".join(kind.to_bytes(2) + tag.to_bytes(2) for kind, tag in tags)
        self.members[backend.name] = Member(
            backend.name,
            str(backend.address),
            backend.port,
            head,
            BALANCER4 if backend.address.version == 4 else BALANCER6,
            self.around.mtu,
            backend.name in self.around.elsewhere,
        )
        return self.members[backend.name]

    def _read_rings(self, down: Collection[str]) -> None:
        """The rings are the agent's work; what is drawn from them is the kernel's."""
        for name, member in self.members.items():
            member.is_alive, member.is_usable = True, name not in down
        rows = {int(row["id"]): row for slot, row in contents.service_rows(self.rig.tables)
                if not slot.is_mark}  # fmt: skip
        for target in self.targets:
            target.ring = self._ring(rows[self.rig.service_id(target.name)])
            target.near = {}
        names = {ident: name for name, ident in self.rig.ids.zones.items()}
        owners = {self.rig.service_id(target.name): target for target in self.targets}
        for key, row in contents.zone_ring_rows(self.rig.tables):
            owners[key.service_id].near[names[key.zone]] = self._ring(row)

    def _ring(self, row: np.void) -> list[Member]:
        first = int(row["ring_line"]) * abi.RING_LINE_SLOTS
        ring = self.rig.tables.rings[first : first + int(row["ring_slots"])]
        return [self.members[self._names[int(ident)]] for ident in ring]

    def reconfigure(self, down: Collection[str]) -> None:
        """Health checks have failed for these, and the agent has built new rings."""
        self._serve(down)
        self._read_rings(down)

    def set_backend(self, name: str, *, alive: bool, usable: bool) -> None:
        """What the first bytes of a change do, before any ring is rebuilt."""
        member = self.members[name]
        member.is_alive, member.is_usable = alive, usable
        row = self.rig.tables.backends[self.ids[name]]
        flags = int(row["flags"]) & abi.BACKEND_F_LOAD
        row["flags"] = flags | alive * abi.BACKEND_F_ALIVE | usable * abi.BACKEND_F_USABLE

    def pass_time(self, ticks: int) -> None:
        """As if the last packets had come so much earlier."""
        tables = self.rig.tables
        used = np.flatnonzero(tables.flows)
        tables.flows[used] = rested(tables.flows[used], ticks)
        for key, value in list(tables.items("fragments")):
            row = np.frombuffer(value, dtype=abi.FRAGMENT).copy()
            row["seen"] = 0
            tables.put("fragments", key, row.tobytes())
        self.model.now += ticks
        self.rig.limit_slots[:] = 0  # an hour at least
        self.model.asked.clear()

    def guard(self, blocked: Collection[str], lists: Mapping[str, Collection[str]]) -> None:
        """The operator blocks these prefixes, and puts these on lists."""
        self.rig.guard(blocked, lists)
        self.model.blocked = [ip_network(text) for text in blocked]
        self.model.lists = {name: [*map(ip_network, texts)] for name, texts in lists.items()}

    def forget_sources(self) -> None:
        """Ten minutes later: nobody is verified."""
        self.rig.verified[:] = bytes(64)
        self.model.verified.clear()

    # -- packets

    def send(self, frame: bytes) -> Outcome:
        """Both must make the same of it."""
        until_ns = self._hold()
        # By the program's clock it is always the first moment of all.
        self.rig.tables.cookie_secret["wall_ns"] = -time.monotonic_ns()
        self.rig.budgets[:] = 0  # how many answers there were by now depends on the host's speed
        done = self.rig.send(frame)
        self.model.held = self.held and (time.monotonic_ns() < until_ns or self._held_one_more())
        try:
            wanted = self.model.judge(frame, Observed(self, done))
        except IllegalError as illegal:
            raise AssertionError(f"{illegal}; frame {frame.hex()}") from None
        verdict = Verdict(done.verdict).name.lower()
        is_same = verdict == wanted.verdict and (verdict == "drop" or done.data == wanted.frame)
        assert is_same, _difference(frame, wanted, verdict, done.data)
        self.found[wanted.reason] += 1
        self.found["answered"] += wanted.answers
        return wanted

    def _hold(self) -> int:
        """Move the kernel's deadline, which would be over by itself; where it is now."""
        until_ns = time.monotonic_ns() + abi.HOLD_MAX_NS if self.held else 0
        self.rig.tables.settings["held_until"] = until_ns
        return until_ns

    def _held_one_more(self) -> bool:
        """Whether the deadline was over before the packet or after it, on a busy host."""
        counted = self.rig.tables.service_count["reason"][:, :, abi.Reason.HELD]
        return int(counted.sum()) > self.found["held"]

    def port_at(self, place: int) -> tuple[int, int] | None:
        """fullnat: the source and port that a flow has."""
        index = int(self.rig.tables.flows_warm[place]["nat"]) - 1
        if index < 0:
            return None
        number = int(self.rig.tables.nat_slots["source"][index])
        return number, self._ports[index % len(self._ports)]

    # -- afterwards

    def check_counters(self) -> None:
        """Every packet that was not forwarded was counted, for its reason."""
        wanted = {reason: n for reason, n in self.found.items() if n}
        answered = wanted.pop("answered", 0)
        wanted.pop("", None)
        assert self.rig.reasons() == wanted
        assert int(self.rig.tables.service_count["replied"].sum()) == answered

    def check_flows(self) -> None:
        """The table holds the flows that it should, where and as it should."""
        words = self.rig.tables.flows
        held = {int(place): int(words[place]) for place in np.flatnonzero(words)}
        wanted = self.model.flows.slots
        assert held.keys() == wanted.keys()
        for place, word in held.items():
            flow = wanted[place]
            name, state = self._names[word >> 16 & 0xFFFF], _STATES[word >> 13 & 7]
            assert (name, state) == (flow.member.name, flow.state), flow


@dataclass(frozen=True, slots=True)
class Observed:
    """The choices that the kernel made for one packet."""

    mirror: Mirror
    done: TestRun

    def member(self, target: Target, flow: Flow | None) -> Member:
        """By where the packet went, or, if it went nowhere, by what was recorded."""
        mirror = self.mirror
        member = mirror._macs.get(self.done.data[:6])
        if member in target.members and self.done.verdict in (Verdict.TX, Verdict.REDIRECT):
            return member
        if flow is None:
            raise IllegalError(f"no backend of {target.name} was chosen")
        ident = int(mirror.rig.tables.flows[flow.place]) >> 16 & 0xFFFF
        return mirror.members[mirror._names[ident]]

    def port(self, flow: Flow) -> tuple[int, int] | None:
        return self.mirror.port_at(flow.place)

    def clock(self, at: int) -> bytes:
        """What is said to be the time, in a frame from that byte on."""
        return self.done.data[at : at + 4]
