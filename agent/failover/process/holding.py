"""Owns the VIPs of one virtual router: they are on this host and announced while it is master."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent.failover.host.addresses import Addresses, Outcome
from agent.failover.host.announcer import Announcer
from agent.failover.host.responder import Responder
from agent.failover.host.vmac import VirtualMac
from agent.failover.model import OWNER
from agent.failover.plan import VirtualRouter
from agent.logs import get_logger
from agent.model import Address

log = get_logger()

type Run = Callable[[Callable[[], Outcome], Callable[[Outcome], None]], None]


def in_thread(work: Callable[[], Outcome], done: Callable[[Outcome], None]) -> None:
    """Do the work in a thread, and then call ``done`` with the result in the event loop."""
    future = asyncio.get_running_loop().run_in_executor(None, work)
    future.add_done_callback(lambda ready: None if ready.cancelled() else done(ready.result()))


class Holding:
    """The VIPs of one virtual router.

    Only ``__init__`` raises: NetworkError or OSError. ``problem`` says which part of the last take
    or drop failed.
    """

    def __init__(self, router: VirtualRouter) -> None:
        instance = router.instance
        self._router = router
        self._mac: VirtualMac | None = None
        self._interface = router.interface
        if instance.virtual_mac and router.family:
            self._mac = VirtualMac(router.interface, instance.vrid, router.family)
            self._mac.make()
            self._interface = self._mac.interface
        self._addresses = Addresses(self._interface)
        self._announcer = self._new_announcer()
        self._responder = self._new_responder()
        self._sent = 0  # frames sent by earlier announcers
        self._held = False
        self._failed = False  # part of the last take or drop failed
        self._trying = False
        self.problem = ""

    @property
    def announced(self) -> int:
        """How many announcement frames were sent so far."""
        return self._sent + (self._announcer.sent if self._announcer else 0)

    @property
    def problems(self) -> tuple[tuple[str, str], ...]:
        """The present problems, as pairs of kind and text; an empty text means no problem."""
        announcing = self._announcer.problem if self._announcer and self._held else ""
        return ("addresses", self.problem), ("announcements", announcing)

    def fileno(self) -> int:
        """Return the descriptor that is readable when addresses have changed; see ``look``."""
        return self._addresses.fileno()

    def take(self) -> None:
        """Put the VIPs on, and announce them after that, so that every client is served."""
        self._held = True
        self._note(self._addresses.take(self._on_interface(self._router)), "on")
        self._respond()
        self.announce(anew=True)

    def drop(self) -> bool:
        """Take the VIPs off, and return whether there were any."""
        if self._announcer is not None:
            self._announcer.stop()
        if self._responder is not None:
            self._responder.stop()
        self._held = False
        outcome = self._addresses.drop(self._router.vips)
        self._note(outcome, "off")
        return bool(outcome.changed)

    def again(self, run: Run) -> None:
        """Repeat the last take or drop if part of it failed.

        This runs in a thread: while it fails, the kernel mostly answers late, and adverts cannot
        wait that long.
        """
        if not self._failed or self._trying:
            return
        self._trying = True
        held, turn = self._held, self._addresses.turn
        vips = self._on_interface(self._router) if held else self._router.vips

        def done(outcome: Outcome) -> None:
            self._trying = False
            if self._addresses.turn != turn:
                return  # another take or drop has come meanwhile
            self._note(outcome, "on" if held else "off")
            if held and outcome.changed:
                self.announce()

        run(lambda: self._addresses.again(turn, held, vips), done)

    def announce(self, *, anew: bool = False) -> None:
        """Announce at once; ``anew``: with the repetitions of a new master."""
        if self._announcer is None or not self._held:
            return
        if anew:
            self._announcer.start()
        else:
            self._announcer.burst()

    def look(self) -> None:
        """Handle events: put back VIPs that something else has removed, if this node holds them."""
        lost = self._addresses.lost()
        if not lost or not self._held:
            return
        log.warning(
            "VIPs were removed by somebody else, and are put back",
            router=self._router.name,
            vips=_listed(lost),
        )
        self.take()

    def change(self, router: VirtualRouter) -> None:
        """Apply other VIPs or announcements of the same virtual router, on the same interface."""
        before, self._router = self._router, router
        gone = tuple(vip for vip in before.vips if vip not in self._on_interface(router))
        if gone:
            self._note(self._addresses.drop(gone), "off")
        if self._announcer is not None:
            self._sent += self._announcer.sent
            self._announcer.close()
        self._announcer = self._new_announcer()
        if self._responder is not None:
            self._responder.stop()
        self._responder = self._new_responder()
        if self._held:
            self.take()

    def close(self) -> None:
        """Take the VIPs off, and release all resources."""
        self.drop()
        self._addresses.close()
        if self._announcer is not None:
            self._announcer.close()
        if self._mac is not None:
            self._mac.remove()

    def _new_announcer(self) -> Announcer | None:
        if not self._router.family:
            return None  # a routing daemon announces them
        instance = self._router.instance
        return Announcer(self._interface, self._router.vips, instance.announcements)

    def _new_responder(self) -> Responder | None:
        if not self._router.family or self._router.instance.accept:
            return None  # the kernel answers
        return Responder(self._interface, self._router.vips)

    def _respond(self) -> None:
        if self._responder is None:
            return
        try:
            self._responder.start()
        except OSError as error:
            self._responder.stop()
            why = error.strerror or str(error)
            self._set_problem(f"nobody answers for the VIPs on {self._interface}: {why}")

    @staticmethod
    def _on_interface(router: VirtualRouter) -> tuple[Address, ...]:
        return router.vips if router.instance.accept else ()

    def _note(self, outcome: Outcome, what: str) -> None:
        problem, self._failed = "", bool(outcome.failed)
        if outcome.failed:
            failed = "; ".join(f"{vip}: {why}" for vip, why in outcome.failed)
            problem = f"VIPs cannot be put {what} {self._interface}: {failed}"
        elif outcome.theirs and self._router.instance.priority != OWNER:
            problem = (
                f"somebody else has put {_listed(outcome.theirs)} on {self._interface}: it stays "
                "there even while another node is master; remove it (`ip address del`)"
            )
        self._set_problem(problem)

    def _set_problem(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.error("addresses", router=self._router.name, problem=problem)
        self.problem = problem


def _listed(vips: tuple[Address, ...]) -> str:
    return ", ".join(map(str, vips))
