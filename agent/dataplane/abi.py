"""Mirrors ``bpf/include/abi.h``: struct layouts as NumPy dtypes, enums, and the check against BTF.

Fields in network byte order have big-endian types (``>u4``, ``>u2``); all others are in host order.
"""

from __future__ import annotations

import enum

import numpy as np

from agent.dataplane.btf import Btf
from agent.errors import AbiMismatchError

ABI_VERSION = 9

FLOW_TAG_SHIFT = 32
FLOW_BACKEND_SHIFT = 16
FLOW_STATE_SHIFT = 13
FLOW_STAMP_MASK = 0x1FFF
FLOW_WAYS = 8
FLOW_EMBRYONIC_WAYS = 4
CLOSING_TICKS = 2  # bpf/slot.h: after this many, a new flow may take a closed flow's slot
RING_LINE_SLOTS = 32
BACKEND_F_ALIVE = 0x1
BACKEND_F_USABLE = 0x2
BACKEND_F_LOAD = 0x4
SERVICE_LIMITS_NEW = 0x1
SERVICE_LIMITS_PACKETS = 0x2
SERVICE_LIMITS_HELD = 0x4
SERVICE_F_WAITING = 0x1
SERVICE_F_RESET = 0x2
SERVICE_F_PREFIX = 0x4
SERVICE_F_RANGES = 0x8
SERVICE_F_ANY_PORT = 0x10
SERVICE_F_NAT_SOURCE = 0x20
SERVICE_F_ZONES = 0x40
SERVICE_F_CHALLENGE = 0x80
NAT_SOURCES = 8
PEER_ROWS = 8
FILTER_WORDS = 1024
FILTER_MULS = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F)
LATENCY_BUCKETS = 44
SAMPLES = 32  # kept for each backend, the newest
FLOW_AWAITING = 4
WAITING_FORGOTTEN_SHIFT = 32
INTERIM_BYTES = 0x1FFF  # bpf/heads.h
INTERIM_SURE = 0x4000
HEAD_RANGES = 4
HEAD_SAMPLES = 16  # kept for each service, the newest
HOLD_MAX_NS = 1_000_000_000
GUARD_BRANCH = 0x80000000
GUARD_NODE_ENTRIES = 16
GUARD_ROOT_NODES = 4096
GUARD_COUNT_BLOCKED = 30
GUARD_COUNT_NOT_ALLOWED = 31


class Reason(enum.IntEnum):
    """``enum reason``: why a packet was not forwarded."""

    NONE = 0
    NOT_IP = 1
    NOT_VIP = 2
    FRAGMENT = 3
    MALFORMED = 4
    EXTENSION = 5
    NO_BACKEND = 6
    NO_FLOW = 7
    NO_ROOM = 8
    NO_PORT = 9
    TTL_EXCEEDED = 10
    TOO_BIG = 11
    NO_HEADROOM = 12
    INTERNAL = 13
    HELD = 14
    MARTIAN = 15
    BROADCAST = 16
    SOURCE_ROUTE = 17
    PORT_ZERO = 18
    CHALLENGED = 19
    VERIFIED = 20
    BLOCKED = 21
    DENIED = 22
    NOT_ALLOWED = 23
    LIMITED = 24

    @property
    def label(self) -> str:
        """The name that metrics and ``lbctl`` use."""
        return self.name.lower().replace("_", "-")


FIRST_DROP = Reason.MALFORMED
REASON_COUNT = len(Reason)


class GuardTree(enum.IntEnum):
    """``enum guard_tree``: the trees of source addresses."""

    BLOCKS4 = 0
    BLOCKS6 = 1
    LISTS4 = 2
    LISTS6 = 3


class GuardModeId(enum.IntEnum):
    """``enum guard_mode``: what happens to packets that a list, a block or a limit refuses."""

    ENFORCE = 0
    DRY_RUN = 1
    OFF = 2


class Limit(enum.IntEnum):
    """``enum limit``: what a service limits."""

    NEW_SOURCE = 0
    NEW_PREFIX = 1
    NEW_SERVICE = 2
    PACKETS = 3
    OPEN = 4
    WAITING = 5


LIMIT_RATES = 4
LIMIT_PERIODS = 3
LIMIT_BUCKETS = 32_768


class ForwardId(enum.IntEnum):
    """``enum forward``."""

    NONE = 0
    DSR = 1
    IPIP = 2
    GUE = 3
    NAT = 4
    FULLNAT = 5
    PEER = 6


class SchedulerId(enum.IntEnum):
    """``enum scheduler``."""

    NONE = 0
    MAGLEV = 1
    SOURCE = 2
    ROUND_ROBIN = 3
    LEAST_CONN = 4
    LEAST_LOAD = 5


class FlowState(enum.IntEnum):
    """``enum flow_state``."""

    FREE = 0
    EMBRYONIC = 1
    ESTABLISHED = 2
    CLOSING = 3
    ACKED = 5
    ESTABLISHED_AWAITING = 6
    CLOSING_AWAITING = 7


FLOW_STATES = 8


class HeadKind(enum.IntEnum):
    """``enum head_kind``: what the first bytes of an answer turned out to be."""

    UNWRITTEN = 0
    FOLLOWED = 1
    ALONE = 2
    NONE = 3


class Talk(enum.IntEnum):
    """``enum talk``: the protocol that a flow's first bytes have shown."""

    UNKNOWN = 0
    PLAIN = 1
    TLS_HANDSHAKE = 2
    TLS_FIRST = 3
    TLS = 4
    HTTP2_FIRST = 5
    HTTP2 = 6


class EventKind(enum.IntEnum):
    """``enum event_kind``."""

    NONE = 0
    DROP = 1
    PICK = 2
    PACKET = 3
    REPLY = 4
    ANSWER = 5
    CLOSE = 6


EVENT_KINDS = 7

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
FLOW_WARM = np.dtype(
    [
        ("waiting", "u8"),
        ("request", "u8"),
        ("nat", "u4"),
        ("seq", "u4"),
        ("ack", "u4"),
        ("request_jiffies", "u4"),
        ("mac", "u1", (6,)),
        ("source_mac", "u1", (6,)),
        ("vlan", ">u2", (4,)),
        ("tags", "u1"),
        ("talk", "u1"),
        ("interim", "u2"),
        ("ifindex", "u4"),
        ("rtt_us", "u4"),
    ]
)
ADDRESS_FILTER = np.dtype([("exact", "u8", (FILTER_WORDS,)), ("prefix", "u8", (FILTER_WORDS,))])
SERVICE_KEY4 = np.dtype([("vip", ">u4"), ("port", ">u2"), ("l4_proto", "u1"), ("pad", "u1")])
SERVICE_KEY6 = np.dtype([("vip", ">u4", (4,)), ("port", ">u2"), ("l4_proto", "u1"), ("pad", "u1")])
VIP_PREFIX4 = np.dtype([("prefix_len", "u4"), ("addr", ">u4")])
VIP_PREFIX6 = np.dtype([("prefix_len", "u4"), ("addr", ">u4", (4,))])
VIP_PREFIX = np.dtype([("vip", ">u4", (4,))])
PORT_RANGE_KEY = np.dtype(
    [
        ("prefix_len", "u4"),
        ("vip", ">u4", (4,)),
        ("pad", "u1", (3,)),
        ("l4_proto", "u1"),
        ("port", ">u2"),
        ("pad2", "u2"),
    ]
)
PORT_RANGE = np.dtype([("first", ">u2"), ("pad", "u2")])
ZONE_KEY4 = np.dtype([("prefix_len", "u4"), ("addr", ">u4")])
ZONE_KEY6 = np.dtype([("prefix_len", "u4"), ("addr", ">u4", (4,))])
ZONE = np.dtype([("id", "u4")])
ZONE_RING_KEY = np.dtype([("service", "u4"), ("zone", "u4")])
ZONE_RING = np.dtype([("ring_line", "u4"), ("ring_slots", "u4")])
SERVICE = np.dtype(
    [
        ("pick_seed", "u8"),
        ("id", "u4"),
        ("flow_salt", "u4"),
        ("ring_line", "u4"),
        ("ring_slots", "u4"),
        ("scheduler", "u1"),
        ("forward", "u1"),
        ("flags", "u1"),
        ("draws", "u1"),
        ("source_bits", "u1"),
        ("quic_id_len", "u1"),
        ("bound", "u2"),
        ("port_last", "u2"),
        ("vip_bits", "u1"),
        ("limits", "u1"),
        ("cookies", "u1"),
        ("holds", "u1"),
        ("pad", "u1", (2,)),
    ]
)
HELD_FRAME = 128
HELD_KEY = np.dtype(
    [("saddr", ">u4", (4,)), ("daddr", ">u4", (4,)), ("sport", ">u2"), ("dport", ">u2")]
)
HELD_SYN = np.dtype(
    [
        ("ns", "u8"),
        ("service", "u4"),
        ("ifindex", "u4"),
        ("tag", "u4"),
        ("len", "u4"),
        ("frame", "u1", (HELD_FRAME,)),
    ]
)
RING_LINE = np.dtype([("backend", "u2", (RING_LINE_SLOTS,))])
BACKEND = np.dtype(
    [
        ("flags", "u4"),
        ("ifindex", "u4"),
        ("mac", "u1", (6,)),
        ("source_mac", "u1", (6,)),
        ("vlan", ">u2", (4,)),
        ("tags", "u1"),
        ("forward", "u1"),
        ("mtu", "u2"),
        ("timeout_ticks", "u2", (FLOW_STATES,)),
        ("service", "u2"),
        ("port", ">u2"),
        ("family", "u1"),
        ("pad", "u1", (11,)),
        ("addr", ">u4", (4,)),
        ("source_addr", ">u4", (4,)),
        ("until", "u4"),
        ("pad2", "u1", (28,)),
    ]
)
PEER_KEY = np.dtype([("addr", ">u4", (4,)), ("own", ">u4", (4,))])
PEER = np.dtype([("known", "u4")])
BACKEND_LOAD = np.dtype(
    [
        ("open", "i4"),
        ("embryonic", "i4"),
        ("waiting", "i8"),
        ("open_fix", "i4"),
        ("embryonic_fix", "i4"),
        ("waiting_fix", "i8"),
        ("report_open", "i4"),
        ("report_embryonic", "i4"),
        ("queue", "u4"),
        ("kappa", "u2"),
        ("is_hot", "u2"),
        ("per_byte", "u4"),
        ("inverse_weight", "u4"),
        ("weight", "u4"),
        ("report_until", "u4"),
    ]
)
BACKEND_SAMPLE = np.dtype([("ahead", "u4"), ("bytes", "u4"), ("open", "u4"), ("us", "u4")])
SAMPLE_SOURCE = np.dtype([("hash", "u4"), ("pad", "u4")])
SERVICE_LOAD = np.dtype(
    [("open", "i8"), ("open_fix", "i8"), ("weight", "u8"), ("escape", "u4"), ("pad", "u4", (9,))]
)
HEAD_RANGE = np.dtype([("least", "u2"), ("most", "u2")])
HEAD_SAMPLE = np.dtype(
    [
        ("us", "u4"),
        ("pause", "u4"),
        ("bytes", "u2"),
        ("is_first", "u1"),
        ("kind", "u1"),
        ("upto", "u4"),
    ]
)
SERVICE_HEADS = np.dtype(
    [
        ("later", HEAD_RANGE, (HEAD_RANGES,)),
        ("first", HEAD_RANGE, (HEAD_RANGES,)),
        ("is_known", "u1"),
        ("probes", "u1"),
        ("probe_mask", "u1"),
        ("pad", "u1", (29,)),
        ("samples", "u8"),
        ("pad2", "u8", (7,)),
        ("sample", HEAD_SAMPLE, (HEAD_SAMPLES,)),
    ]
)
BACKEND_LATENCY = np.dtype(
    [
        ("first_byte", "u8", (LATENCY_BUCKETS,)),
        ("handshake", "u8", (LATENCY_BUCKETS,)),
        ("first_byte_us", "u8"),
        ("handshake_us", "u8"),
        ("samples", "u8"),
        ("errors", "u8"),
        ("hangups", "u8"),
        ("pad", "u8", (3,)),
    ]
)
NAT_SLOT = np.dtype(
    [
        ("owner", "u8"),
        ("client", ">u4", (4,)),
        ("vip", ">u4", (4,)),
        ("client_port", ">u2"),
        ("vip_port", ">u2"),
        ("backend", "u2"),
        ("service", "u2"),
        ("l4_proto", "u1"),
        ("family", "u1"),
        ("source", "u1"),
        ("pad", "u1", (13,)),
    ]
)
NAT_SOURCE = np.dtype([("addr", ">u4", (4,)), ("count", "u4"), ("pad", "u4", (3,))])
ORIGIN = np.dtype(
    [
        ("vip", ">u4", (4,)),
        ("flow_salt", "u4"),
        ("service", "u2"),
        ("backend", "u2"),
        ("port", ">u2"),
        ("pad", "u2", (3,)),
        ("block", "u2", (NAT_SOURCES,)),
    ]
)
QUIC_KEY = np.dtype([("id", "u1", (8,)), ("service", "u4"), ("pad", "u4")])
QUIC_SERVER = np.dtype([("backend", "u4")])
FRAGMENT_KEY = np.dtype(
    [("saddr", ">u4", (4,)), ("daddr", ">u4", (4,)), ("id", ">u4"), ("l4_proto", "u4")]
)
FRAGMENT = np.dtype(
    [
        ("saddr", ">u4", (4,)),
        ("daddr", ">u4", (4,)),
        ("seen", "u8"),
        ("flow", "u4"),
        ("backend", "u2"),
        ("service", "u2"),
        ("reply", "u1"),
        ("pad", "u1", (3,)),
        ("tag", "u4"),
    ]
)
BACKEND_COUNTERS = np.dtype(
    [
        ("packets", "u8"),
        ("bytes", "u8"),
        ("opened", "u8"),
        ("closed", "u8"),
        ("established", "u8"),
        ("reply_packets", "u8"),
        ("reply_bytes", "u8"),
        ("answers", "u8"),
    ]
)
SERVICE_COUNTERS = np.dtype(
    [
        ("reason", "u8", (REASON_COUNT,)),
        ("not_recorded", "u8"),
        ("replied", "u8"),
        ("not_replied", "u8"),
        ("turn", "u8"),
        ("gone_packets", "u8"),
        ("gone_bytes", "u8"),
        ("gone_opened", "u8"),
        ("gone_closed", "u8"),
        ("gone_established", "u8"),
        ("gone_reply_packets", "u8"),
        ("gone_reply_bytes", "u8"),
        ("cookies", "u8"),
        ("pad", "u8", (3,)),
    ]
)
GUARD_NODE = np.dtype([("entry", "u4", (GUARD_NODE_ENTRIES,))])
GUARD_ROOTS = np.dtype([("root", "u4", (4,)), ("nodes", "u4", (4,)), ("pad", "u8", (4,))])
GUARD_POLICY = np.dtype([("allow", "u4"), ("deny", "u4"), ("mode", "u4"), ("pad", "u4")])
GUARD_COUNTERS = np.dtype([("dropped", "u8", (32,)), ("would_drop", "u8", (32,))])
SERVICE_LIMITS = np.dtype(
    [
        ("interval", "u8", (LIMIT_RATES,)),
        ("ahead", "u8", (LIMIT_RATES,)),
        ("first", "u4", (LIMIT_RATES,)),
        ("pad", "u8", (6,)),
    ]
)
LIMITED_KEY = np.dtype(
    [("addr", ">u4", (2,)), ("service", "u2"), ("family", "u1"), ("pad", "u1", (5,))]
)
LIMITED = np.dtype([("until", "u8"), ("limits", "u4"), ("pad", "u4")])
LIMIT_COUNTERS = np.dtype(
    [
        ("dropped", "u8", (len(Limit),)),
        ("would_drop", "u8", (len(Limit),)),
        ("salt", "u8"),
        ("pad", "u8", (3,)),
    ]
)
SYNC_COUNTERS = np.dtype(
    [
        ("untold", "u8"),
        ("passed_on", "u8"),
        ("not_passed", "u8"),
        ("taken", "u8"),
        ("strangers", "u8"),
        ("window", "u4"),
        ("in_window", "u4"),
        ("pad", "u8", (2,)),
    ]
)
EVENT = np.dtype(
    [
        ("time", "u8"),
        ("client", ">u4", (4,)),
        ("vip", ">u4", (4,)),
        ("client_port", ">u2"),
        ("vip_port", ">u2"),
        ("service", "u2"),
        ("backend", "u2"),
        ("len", "u2"),
        ("kind", "u1"),
        ("reason", "u1"),
        ("l4_proto", "u1"),
        ("family", "u1"),
        ("tcp_flags", "u1"),
        ("state", "u1"),
        ("waited_bytes", "u4"),
        ("waited_us", "u4"),
    ]
)
TRACE_CONTROL = np.dtype(
    [("kinds", "u4"), ("service", "u4"), ("sample", "u4"), ("pad", "u4"), ("lost", "u8")]
)
SETTINGS = np.dtype(
    [
        ("flow_key", "u8"),
        ("flow_mul0", "u8"),
        ("flow_mul1", "u8"),
        ("abi", "u4"),
        ("tick_shift", "u4"),
        ("hz", "u4"),
        ("nat_first_port", "u2"),
        ("nat_ports", "u2"),
        ("held_until", "u8"),
        ("services_version", "u8"),
        ("pad2", "u4", (2,)),
    ]
)
COOKIE_KEYS = 2
COOKIE_SECRET = np.dtype(
    [
        ("key", "u8", (2,)),
        ("other", "u8", (2,)),
        ("keys", "u8"),
        ("wall_ns", "i8"),
        ("mtu", "u2"),
        ("pad", "u1", (14,)),
    ]
)

STRUCTS: dict[str, np.dtype[np.void]] = {
    "flow_bucket": FLOW_BUCKET,
    "flow_cold": FLOW_COLD,
    "flow_warm": FLOW_WARM,
    "service_key4": SERVICE_KEY4,
    "service_key6": SERVICE_KEY6,
    "address_filter": ADDRESS_FILTER,
    "vip_prefix4": VIP_PREFIX4,
    "vip_prefix6": VIP_PREFIX6,
    "vip_prefix": VIP_PREFIX,
    "port_range_key": PORT_RANGE_KEY,
    "port_range": PORT_RANGE,
    "zone_key4": ZONE_KEY4,
    "zone_key6": ZONE_KEY6,
    "zone": ZONE,
    "zone_ring_key": ZONE_RING_KEY,
    "zone_ring": ZONE_RING,
    "service": SERVICE,
    "ring_line": RING_LINE,
    "backend": BACKEND,
    "peer_key": PEER_KEY,
    "peer": PEER,
    "backend_load": BACKEND_LOAD,
    "backend_sample": BACKEND_SAMPLE,
    "sample_source": SAMPLE_SOURCE,
    "service_load": SERVICE_LOAD,
    "head_range": HEAD_RANGE,
    "head_sample": HEAD_SAMPLE,
    "service_heads": SERVICE_HEADS,
    "backend_latency": BACKEND_LATENCY,
    "nat_slot": NAT_SLOT,
    "nat_source": NAT_SOURCE,
    "origin": ORIGIN,
    "quic_key": QUIC_KEY,
    "quic_server": QUIC_SERVER,
    "fragment_key": FRAGMENT_KEY,
    "held_key": HELD_KEY,
    "held_syn": HELD_SYN,
    "fragment": FRAGMENT,
    "backend_counters": BACKEND_COUNTERS,
    "service_counters": SERVICE_COUNTERS,
    "guard_node": GUARD_NODE,
    "guard_roots": GUARD_ROOTS,
    "guard_policy": GUARD_POLICY,
    "guard_counters": GUARD_COUNTERS,
    "service_limits": SERVICE_LIMITS,
    "limited_key": LIMITED_KEY,
    "limited": LIMITED,
    "limit_counters": LIMIT_COUNTERS,
    "sync_counters": SYNC_COUNTERS,
    "event": EVENT,
    "trace_control": TRACE_CONTROL,
    "cookie_secret": COOKIE_SECRET,
    "settings": SETTINGS,
}

ENUMS: dict[str, dict[str, int]] = {
    "reason": {f"REASON_{r.name}": r for r in Reason} | {"REASON_COUNT": REASON_COUNT},
    "guard_tree": {f"GUARD_{t.name}": t for t in GuardTree} | {"GUARD_TREES": len(GuardTree)},
    "guard_mode": {f"GUARD_{m.name}": m for m in GuardModeId},
    "limit": {f"LIMIT_{limit.name}": limit for limit in Limit} | {"LIMITS": len(Limit)},
    "forward": {f"FORWARD_{f.name}": f for f in ForwardId},
    "scheduler": {f"SCHEDULER_{s.name}": s for s in SchedulerId},
    "flow_state": {f"FLOW_{s.name}": s for s in FlowState} | {"FLOW_STATES": FLOW_STATES},
    "talk": {f"TALK_{t.name}": t for t in Talk},
    "head_kind": {f"HEAD_{k.name}": k for k in HeadKind},
    "event_kind": {f"EVENT_{e.name}": e for e in EventKind} | {"EVENT_KINDS": EVENT_KINDS},
}


def mismatches(btf: Btf) -> list[str]:
    """Return the differences between this mirror and a compiled program's structs and enums."""
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
