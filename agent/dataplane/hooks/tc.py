"""The tc hook: one filter of ours at clsact ingress, direct action. Other filters stay as they are.

A packet passes filters in the order of their priorities, until one of them decides. Ours leaves
packets that it does not balance to the filters after it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.dataplane import libbpf

if TYPE_CHECKING:
    from pyroute2 import IPRoute

PRIORITY = 10  # leaves room before it; filters without a priority get 49152, counting down
HANDLE = 0x5354  # "ST"
NAME = "steelyard"
_INGRESS = 0xFFFFFFF2  # TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)
_ETH_P_ALL = 0x0003
_NO_CLSACT = "the kernel has no clsact (CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_BPF)"
_KNOWN = {
    errno.ENOENT: _NO_CLSACT,
    errno.EOPNOTSUPP: _NO_CLSACT,
    errno.EINVAL: "another kind of filter has priority {priority} at tc ingress",
    errno.EEXIST: "another program came first",
}


@dataclass(frozen=True, slots=True)
class TcPlace:
    """Our filter on one interface."""

    ifindex: int
    priority: int = PRIORITY
    name: str = NAME

    def current(self) -> int:
        return libbpf.tc_query(self.ifindex, HANDLE, self.priority)

    def put(self, fd: int, over: int) -> None:
        def change(netlink: IPRoute) -> None:
            with _tolerated(errno.EEXIST):
                netlink.tc("add", "clsact", index=self.ifindex)
            command = "replace-filter" if over else "add-filter"
            netlink.tc(command, **self._filter(), fd=fd, name=self.name, direct_action=True)

        _by_netlink(change)

    def clear(self, ident: int) -> None:
        if self.current() == ident:
            _by_netlink(lambda netlink: netlink.tc("del-filter", **self._filter()))

    def why(self, error: OSError) -> str:
        known = _KNOWN.get(error.errno or 0, os.strerror(error.errno or 0))
        return known.format(priority=self.priority)

    def _filter(self) -> dict[str, object]:
        return {
            "kind": "bpf",
            "index": self.ifindex,
            "parent": _INGRESS,
            "handle": HANDLE,
            "prio": self.priority,
            "protocol": _ETH_P_ALL,
        }


@contextlib.contextmanager
def _tolerated(code: int) -> Iterator[None]:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except NetlinkError as error:
        if error.code != code:
            raise


def _by_netlink(change: Callable[[IPRoute], object]) -> None:
    """Make a change on a netlink socket of its own; OSError if the kernel refuses.

    It runs in a thread, because the socket runs an event loop, and ours may be running in this one.
    """
    # Not at the top: it takes 250 ms, and most commands that attach a program do not need it.
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    def work() -> None:
        with IPRoute() as netlink:
            change(netlink)

    with ThreadPoolExecutor(1, "tc") as thread:
        try:
            thread.submit(work).result()
        except NetlinkError as error:
            raise OSError(error.code, os.strerror(error.code)) from error
