"""Owns the watch over long-lived connections: how skewed services are, and the resets.

After each survey the skews are read. If a service is configured for it, idle connections of
overloaded backends are closed in the tables, each backend gets a reset frame for them, and each
client gets a probe that makes it send an ACK with its sequence numbers. The ACK reaches the
backend, which no longer knows the connection and answers with an RST that has exactly the right
numbers.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from agent.dataplane.flows import Names, names_of, query_flows
from agent.dataplane.idle import Closer, IdleFlow, Wanted, idle_flows
from agent.dataplane.program import Dataplane
from agent.dataplane.rerun import Frame
from agent.dataplane.survey import Survey
from agent.errors import SteelyardError
from agent.logs import get_logger
from agent.model import BackendRef, Service
from agent.network.reset import RawSender
from agent.state.queries import FlowQuery, FlowView
from agent.state.rebalance import Budget, excess, portion, rebalances
from agent.state.situation import Situation
from agent.state.skew import Lasting, Skew, Standing, Turn, follow, skew
from agent.state.zones import has_levels

log = get_logger()

HOTTEST = 3  # flows named in the log
SEND_TIMES = 3  # sends of each notice, one per survey, because frames and probes can get lost


@dataclass(frozen=True, slots=True)
class _Notice:
    """A closed flow, whose two ends have been sent a notice so many times."""

    flow: IdleFlow
    frame: Frame
    times: int


class Rebalancer:
    """Follows the skews, and resets idle flows.

    Call ``take`` with every survey, in the thread that writes the tables.
    """

    def __init__(self, dataplane: Dataplane) -> None:
        self._dataplane = dataplane
        self._closer = Closer(
            dataplane.tables,
            lambda: (dataplane.program.fd, dataplane.program.kind),
            lambda: dataplane.ifindex,
        )
        self._lasting: dict[str, Lasting] = {}
        self._budgets: dict[str, Budget] = {}
        self._notices: list[_Notice] = []
        self._problem = ""
        self.skews: Mapping[str, Skew | None] = {}  # by service; None: too few to tell
        self.resets: Counter[BackendRef] = Counter()  # since the agent started

    async def take(self, situation: Situation, found: Survey, now: float) -> None:
        """Read the skews of a survey and act on them; ``now`` only goes forward."""
        services, known = situation.config.services, situation.roster
        busy = known.services_of(found.live[known.ids] > 0)  # others have no connections
        standings = {
            one.name: standings_of(situation, one, found) for one in services if one.name in busy
        }
        self.skews = {one.name: skew(standings.get(one.name, ())) for one in services}
        thresholds = {one.name: one.rebalance.skew for one in services}
        self._lasting, turns = follow(self._lasting, self.skews, thresholds, now)
        for turn in turns:
            _log_turn(turn, await self._hottest(situation, turn))
        wanted = self._wanted(situation, standings, now)
        chosen = await asyncio.to_thread(self._choose, situation, wanted) if wanted else ()
        if not chosen and not self._notices:
            return
        try:
            with RawSender() as sender:
                self._send_again(sender)
                self._reset(sender, chosen)
        except (SteelyardError, OSError) as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        """Log a problem once while it lasts; the next survey tries again."""
        if str(error) != self._problem:
            log.error("connections cannot be reset", problem=str(error))
        self._problem = str(error)

    def _wanted(
        self, situation: Situation, standings: Mapping[str, tuple[Standing, ...]], now: float
    ) -> dict[int, Wanted]:
        """Return, by backend id, how many flows may be reset now."""
        budgets, wanted = {}, {}
        for service in situation.config.services:
            if not rebalances(service):
                continue
            settings, before = service.rebalance, self._budgets.get(service.name, Budget())
            budget = budgets[service.name] = before.refilled(settings.rate_per_s, now)
            over = excess(settings, standings.get(service.name, ()))
            ids = {b.name: situation.ids.backend_id(service, b) for b in service.backends}
            for name, count in portion(over, budget).items():
                wanted[ids[name]] = Wanted(count, settings.idle_s)
        self._budgets = budgets
        return wanted

    def _choose(self, situation: Situation, wanted: Mapping[int, Wanted]) -> tuple[IdleFlow, ...]:
        plane, names = self._dataplane, names_of(situation)
        return idle_flows(plane.tables, names, wanted, plane.keys, plane.clock, plane.now_jiffies())

    def _reset(self, sender: RawSender, chosen: tuple[IdleFlow, ...]) -> None:
        for flow in chosen:
            frame = self._closer.close(flow)
            if frame is None:
                continue  # it is not idle any more
            service = flow.view.service
            self._budgets[service] = self._budgets[service].spent(1)
            self.resets[flow.ref] += 1
            notice = _Notice(flow, frame, 1)
            self._notices.append(notice)
            self._send(sender, notice)

    def _send_again(self, sender: RawSender) -> None:
        """Send again to both ends of flows whose client has sent nothing since.

        An end that has received it before ignores it.
        """
        left = [notice for notice in self._notices if self._closer.is_left(notice.flow)]
        again = [_Notice(notice.flow, notice.frame, notice.times + 1) for notice in left]
        self._notices = [notice for notice in again if notice.times < SEND_TIMES]
        for notice in again:
            self._send(sender, notice)

    def _send(self, sender: RawSender, notice: _Notice) -> None:
        """Send the frame to the backend and the probe to the client.

        The backend is first, because it must have closed the connection when the client's ACK
        arrives.
        """
        try:
            sender.frame(notice.frame.ifindex, notice.frame.data)
            sender.packet(notice.flow.view.tuple5.client, notice.flow.probe().packet())
        except SteelyardError as error:
            self._failed(error)  # perhaps only for this client
        else:
            self._problem = ""

    async def _hottest(self, situation: Situation, turn: Turn) -> tuple[FlowView, ...]:
        if not turn.skewed:
            return ()
        ref = BackendRef(turn.service, turn.backend)
        return await asyncio.to_thread(hottest, self._dataplane, names_of(situation), ref)


def standings_of(situation: Situation, service: Service, found: Survey) -> tuple[Standing, ...]:
    """Return the parts that a service's backends have, according to the newest survey."""
    standings = []
    for backend in service.backends:
        ident = situation.ids.backend_id(service, backend)
        weight = situation.verdicts[BackendRef(service.name, backend.name)].weight
        level = f"{backend.priority} {backend.zone}" if has_levels(service) else ""
        busy, live = int(found.busy[ident]), int(found.live[ident])
        standings.append(Standing(backend.name, weight, busy, live, level))
    return tuple(standings)


def hottest(dataplane: Dataplane, names: Names, ref: BackendRef) -> tuple[FlowView, ...]:
    """Return the flows that keep a backend busiest."""
    query = FlowQuery(service=ref.service, backend=ref.backend, limit=HOTTEST, hottest=True)
    jiffies = dataplane.now_jiffies()
    page = query_flows(dataplane.tables, names, query, dataplane.keys, dataplane.clock, jiffies)
    return page.flows


def flow_words(flow: FlowView) -> str:
    """Describe a hot flow briefly, for the log."""
    five = flow.tuple5
    client = f"[{five.client}]" if five.client.version == 6 else str(five.client)
    text = f"{client}:{five.client_port} open for {flow.age_s:.0f} s"
    if flow.requests is not None and flow.requests.awaiting:
        return f"{text}, {flow.requests.waiting_bytes} bytes wait"
    return f"{text}, idle for {flow.idle_s:.0f} s"


def _log_turn(turn: Turn, flows: tuple[FlowView, ...]) -> None:
    old, new = ("even", "skewed") if turn.skewed else ("skewed", "even")
    facts: dict[str, object] = {
        "backend": f"{turn.service}/{turn.backend}",
        "lasted_s": round(turn.lasted_s),
    }
    if turn.skew is not None:
        facts["skew"] = round(turn.skew.value, 2)
    if flows:
        facts["hottest"] = [flow_words(flow) for flow in flows]
    log.info("connections", service=turn.service, old=old, new=new, **facts)
