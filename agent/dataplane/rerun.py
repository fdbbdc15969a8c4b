"""Owns running a frame through the program that balances, as if the frame had just come in.

The packet path thus does all that it does to a packet: it picks, records, counts and rewrites. Only
the kernel does not send the result, so the caller has to.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from agent.dataplane import libbpf
from agent.dataplane.libbpf import ProgramType
from agent.dataplane.tables import Table

_TX, _REDIRECT = 3, 4  # enum xdp_action
_TC_REDIRECT = 7
_CONTEXT_BYTES = 256  # no less than the kernel's own, all of which it copies back


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame for the wire, and the interface that it is sent on."""

    ifindex: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Sent:
    """What the program made of a frame that it sends on."""

    came_in: int
    data: bytes
    tag_is_apart: bool  # under tc, the kernel keeps the outer VLAN tag apart from the frame

    def to(self, backend: Table) -> Frame:
        """Return the frame for the wire; ``backend``: the row of the backend that it goes to."""
        data = self.data
        if self.tag_is_apart and backend["tags"]:
            data = data[:12] + backend["vlan"][:2].tobytes() + data[12:]
        return Frame(int(backend["ifindex"]) or self.came_in, data)


class Rerun:
    """Runs frames through a program. ``program`` returns its descriptor and type as of now."""

    def __init__(self, program: Callable[[], tuple[int, ProgramType]]) -> None:
        self._program = program

    def send(self, came_in: int, frame: bytes) -> Sent | None:
        """Run a frame that came in by interface ``came_in``.

        Returns what the program sends; None if it drops the frame, or leaves it to the host.
        """
        fd, kind = self._program()
        done = libbpf.test_run(fd, frame, context=_context(kind, came_in, len(frame)))
        is_tc = kind is ProgramType.SCHED_CLS
        if done.verdict not in ((_TC_REDIRECT,) if is_tc else (_TX, _REDIRECT)):
            return None
        return Sent(came_in, done.data, is_tc)


def _context(kind: ProgramType, ifindex: int, length: int) -> bytes:
    """Return the context of a test run, which names the interface that the frame came in by."""
    if kind is ProgramType.SCHED_CLS:
        known = struct.pack("=11I", *[0] * 10, ifindex)  # struct __sk_buff, up to ifindex
    else:
        known = struct.pack("=4I", 0, length, 0, ifindex)  # struct xdp_md, likewise
    return known.ljust(_CONTEXT_BYTES, b"\0")
