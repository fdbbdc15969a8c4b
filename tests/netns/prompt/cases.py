"""What a case is: a conversation that is played, and what must come of it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from agent.model import Forward
from tests.netns.prompt.clients import Door
from tests.netns.prompt.nginx import Front

# No request over TLS or HTTP/2 is smaller; what is are window updates, pings, farewells.
CONTROL = 56
PROMPT = b"p" * 8000
_PARTS = (Forward.IPIP, Forward.FULLNAT, Forward.GUE)  # modes that get a part of the cases
_PLAIN = Front(0)


class Server(enum.Enum):
    """What answers at a port."""

    UPSTREAM = "upstream"
    NGINX = "nginx"
    RPC = "rpc"
    RPC_TLS = "rpc-tls"


@dataclass(frozen=True, slots=True)
class Talk:
    """The requests of one connection, in order.

    ``port``: of the client; None: the only connection there is, as a rule. ``broke_ns``: when it
    ended, at the earliest and at the latest, if the last request got no answer.
    """

    requests: tuple[int, ...]
    port: int | None = None
    broke_ns: tuple[int, int] | None = None


type Play = Callable[[Door], list[Talk]]


@dataclass(frozen=True, slots=True)
class Case:
    """One conversation, with a service of its own.

    ``answers``: how many are counted; None: one per answered request. ``loose``: several requests
    share a connection at a time, so only bounds and the end are judged.
    """

    name: str
    play: Play
    server: Server = Server.UPSTREAM
    front: Front = _PLAIN
    ipv6: bool = False
    relayed: bool = False
    spared: bool = False  # the relay does nothing to what the server sends
    control: int = 0
    answers: int | None = None
    loose: bool = False
    everywhere: bool = False  # also in the modes that get only a part of the cases
    service: dict[str, Any] = field(default_factory=dict)


class Cases(list[Case]):
    """A table of cases, filled by its ``enter``."""

    def enter(self, **fields: Any) -> Callable[[Play], Play]:
        """Take a function in as a case, under its name."""

        def take(play: Play) -> Play:
            self.append(Case(play.__name__.replace("_", "-"), play, **fields))
            return play

        return take


def cases_for(forward: Forward, cases: Iterable[Case]) -> list[Case]:
    """The cases that are played in a mode."""
    return [case for case in cases if case.everywhere or forward not in _PARTS]
