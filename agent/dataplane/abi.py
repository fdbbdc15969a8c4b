"""Mirrors ``bpf/include/abi.h``: layouts as NumPy dtypes, enums, and the check against BTF.

Network order is in the type (``>u4``, ``>u2``); everything else is the host's.
"""

from __future__ import annotations

import enum

import numpy as np

from agent.dataplane.btf import Btf
from agent.errors import AbiMismatchError

ABI_VERSION = 1

FLOW_TAG_SHIFT = 32
FLOW_BACKEND_SHIFT = 16
FLOW_STATE_SHIFT = 13
FLOW_STAMP_MASK = 0x1FFF
FLOW_WAYS = 8
RING_LINE_SLOTS = 32
BACKEND_F_ALIVE = 0x1
BACKEND_F_USABLE = 0x2


class Reason(enum.IntEnum):
    """``enum reason``: why a packet was not forwarded."""

    NONE = 0
    NOT_IP = 1
    NOT_VIP = 2
    MALFORMED = 3
    FRAGMENT = 4
    EXTENSION = 5
    NO_BACKEND = 6
    TOO_BIG = 7
    NO_HEADROOM = 8
    INTERNAL = 9

    @property
    def label(self) -> str:
        """The name that metrics and ``lbctl`` use."""
        return self.name.lower().replace("_", "-")


FIRST_DROP = Reason.MALFORMED
REASON_COUNT = len(Reason)


class ForwardId(enum.IntEnum):
    """``enum forward``."""

    NONE = 0
    DSR = 1
    IPIP = 2


class SchedulerId(enum.IntEnum):
    """``enum scheduler``."""

    NONE = 0
    MAGLEV = 1


class FlowState(enum.IntEnum):
    """``enum flow_state``."""

    FREE = 0
    EMBRYONIC = 1
    ESTABLISHED = 2
    CLOSING = 3
    ACKED = 5


FLOW_STATES = 8

FLOW_BUCKET = np.dtype([("slot", "u8", (FLOW_WAYS,))])
FLOW_COLD = np.dtype(
    [
        ("saddr", ">u4", (4,)),
        ("daddr", ">u4", (4,)),
        ("sport", ">u2"),
        ("dport", ">u2"),
        ("service", "u2"),
        ("l4_proto", "u1"),
        ("family", "u1"),
        ("start", "u8"),
        ("pad", "u1", (16,)),
    ]
)
SERVICE_KEY4 = np.dtype([("vip", ">u4"), ("port", ">u2"), ("l4_proto", "u1"), ("pad", "u1")])
SERVICE_KEY6 = np.dtype([("vip", ">u4", (4,)), ("port", ">u2"), ("l4_proto", "u1"), ("pad", "u1")])
SERVICE = np.dtype(
    [
        ("pick_seed", "u8"),
        ("id", "u4"),
        ("flow_salt", "u4"),
        ("ring_line", "u4"),
        ("ring_slots", "u4"),
        ("scheduler", "u1"),
        ("forward", "u1"),
        ("pad", "u1", (6,)),
    ]
)
RING_LINE = np.dtype([("backend", "u2", (RING_LINE_SLOTS,))])
BACKEND = np.dtype(
    [
        ("flags", "u4"),
        ("ifindex", "u4"),
        ("mac", "u1", (6,)),
        ("source_mac", "u1", (6,)),
        ("forward", "u1"),
        ("family", "u1"),
        ("mtu", "u2"),
        ("timeout_ticks", "u2", (FLOW_STATES,)),
        ("service", "u2"),
        ("pad", "u1", (22,)),
        ("addr", ">u4", (4,)),
        ("source_addr", ">u4", (4,)),
        ("pad2", "u1", (32,)),
    ]
)
BACKEND_COUNTERS = np.dtype(
    [
        ("packets", "u8"),
        ("bytes", "u8"),
        ("opened", "u8"),
        ("closed", "u8"),
        ("established", "u8"),
        ("pad", "u8", (3,)),
    ]
)
SERVICE_COUNTERS = np.dtype(
    [
        ("reason", "u8", (REASON_COUNT,)),
        ("not_recorded", "u8"),
        ("gone_packets", "u8"),
        ("gone_bytes", "u8"),
        ("gone_opened", "u8"),
        ("gone_closed", "u8"),
        ("gone_established", "u8"),
    ]
)
SETTINGS = np.dtype(
    [
        ("flow_key", "u8"),
        ("flow_mul0", "u8"),
        ("flow_mul1", "u8"),
        ("abi", "u4"),
        ("tick_shift", "u4"),
        ("hz", "u4"),
        ("pad", "u4", (7,)),
    ]
)

STRUCTS: dict[str, np.dtype[np.void]] = {
    "flow_bucket": FLOW_BUCKET,
    "flow_cold": FLOW_COLD,
    "service_key4": SERVICE_KEY4,
    "service_key6": SERVICE_KEY6,
    "service": SERVICE,
    "ring_line": RING_LINE,
    "backend": BACKEND,
    "backend_counters": BACKEND_COUNTERS,
    "service_counters": SERVICE_COUNTERS,
    "settings": SETTINGS,
}

ENUMS: dict[str, dict[str, int]] = {
    "reason": {f"REASON_{r.name}": r for r in Reason} | {"REASON_COUNT": REASON_COUNT},
    "forward": {f"FORWARD_{f.name}": f for f in ForwardId},
    "scheduler": {f"SCHEDULER_{s.name}": s for s in SchedulerId},
    "flow_state": {f"FLOW_{s.name}": s for s in FlowState} | {"FLOW_STATES": FLOW_STATES},
}


def mismatches(btf: Btf) -> list[str]:
    """What differs between this mirror and the structs and enums of a compiled program."""
    found = []
    for name, dtype in STRUCTS.items():
        layout = btf.structs.get(name)
        if layout is None:
            found.append(f"struct {name} is not in the program")
            continue
        if layout.size != dtype.itemsize:
            found.append(f"struct {name}: {layout.size} bytes in C, {dtype.itemsize} in Python")
        ours = (
            {field: dtype.fields[field][1] for field in dtype.names or ()} if dtype.fields else {}
        )
        if layout.offsets != ours:
            found.append(f"struct {name}: offsets {layout.offsets} in C, {ours} in Python")
    for name, values in ENUMS.items():
        theirs = btf.enums.get(name)
        if theirs is None:
            found.append(f"enum {name} is not in the program")
        elif theirs != values:
            found.append(f"enum {name}: {theirs} in C, {values} in Python")
    return found


def check(btf: Btf) -> None:
    """Raise AbiMismatchError unless the program and this mirror agree to the byte."""
    found = mismatches(btf)
    if found:
        raise AbiMismatchError(
            "the compiled program and the agent disagree: " + "; ".join(found),
            where="bpf/include/abi.h",
            remedy="install the agent and its BPF sources from one release; nothing was attached",
        )
