/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The only structs and enums that the kernel programs and Python share.
 *
 * agent/dataplane/abi.py mirrors this file; tests/abi and the loader compare
 * both with the BTF of the compiled program.  Fixed-width scalars, explicit
 * padding, 1-D arrays, no bit-fields.  Whatever changes a size, an offset or a
 * value here raises STEELYARD_ABI: it is part of the pin path, so tables of
 * another layout are never opened by mistake.
 *
 * __be* is network order, everything else host order.  Id 0 is "none".
 */
#ifndef STEELYARD_ABI_H
#define STEELYARD_ABI_H

#include <linux/types.h>

#define STEELYARD_ABI 1

/* Why a packet was not forwarded.  Steps return 0 to go on, or one of these;
 * the entry function alone turns it into an XDP action and counts it.
 */
enum reason {
	REASON_NONE = 0,
	/* passed to the host, untouched */
	REASON_NOT_IP = 1,  /* neither IPv4 nor IPv6 */
	REASON_NOT_VIP = 2, /* no service has this address, port and protocol */
	/* dropped: from here on (REASON_DROP) */
	REASON_MALFORMED = 3,   /* lengths or flags that no sender makes */
	REASON_FRAGMENT = 4,    /* a fragment for a VIP */
	REASON_EXTENSION = 5,   /* an IPv6 extension header, for a VIP */
	REASON_NO_BACKEND = 6,  /* no usable backend */
	REASON_TOO_BIG = 7,     /* does not fit the path once encapsulated */
	REASON_NO_HEADROOM = 8, /* the driver left no room for the outer header */
	REASON_INTERNAL = 9,    /* a table is missing or inconsistent */
	REASON_COUNT = 10,
};
#define REASON_DROP REASON_MALFORMED

enum forward {
	FORWARD_NONE = 0,
	FORWARD_DSR = 1,  /* a new destination MAC, nothing else */
	FORWARD_IPIP = 2, /* RFC 2003, RFC 2473: outer header to the backend */
};

enum scheduler {
	SCHEDULER_NONE = 0,
	SCHEDULER_MAGLEV = 1,
};

/* The life of a flow: state:2 and, above it, awaiting:1 of the slot word.
 * awaiting means "a request waits for its answer"; that takes payload, so the
 * combination with FLOW_EMBRYONIC is free for "answered the SYN-ACK, has sent
 * nothing yet".
 */
enum flow_state {
	FLOW_FREE = 0,
	FLOW_EMBRYONIC = 1,   /* a SYN, or the first packet that we saw */
	FLOW_ESTABLISHED = 2, /* has carried payload after the first packet */
	FLOW_CLOSING = 3,     /* FIN or RST seen */
	FLOW_ACKED = 5,       /* second packet seen, no payload: short timeout */
	FLOW_STATES = 8,
};

/* A slot: tag:32 | backend:16 | state:3 | stamp:13 (ticks of about 4 s). */
#define FLOW_TAG_SHIFT 32
#define FLOW_BACKEND_SHIFT 16
#define FLOW_STATE_SHIFT 13
#define FLOW_STAMP_MASK 0x1fff
#define FLOW_WAYS 8
#define FLOW_EMBRYONIC_WAYS 2

struct flow_bucket {
	__u64 slot[FLOW_WAYS];
};
_Static_assert(sizeof(struct flow_bucket) == 64, "one cache line");

/* What people want to see of an established flow: written once, when it stops
 * being embryonic; never read on the packet path.  IPv4 addresses use word 0.
 */
struct flow_cold {
	__be32 saddr[4];
	__be32 daddr[4];
	__be16 sport;
	__be16 dport;
	__u16 service;
	__u8 l4_proto;
	__u8 family; /* 4 or 6 */
	__u64 start; /* jiffies */
	__u8 pad[16];
};
_Static_assert(sizeof(struct flow_cold) == 64, "one cache line");

/* Key (VIP, 0, 0) marks an address as a VIP, whatever the port; key
 * (VIP, 0, protocol) is the any-port service.
 */
struct service_key4 {
	__be32 vip;
	__be16 port;
	__u8 l4_proto;
	__u8 pad;
};
_Static_assert(sizeof(struct service_key4) == 8, "service_key4");

struct service_key6 {
	__be32 vip[4];
	__be16 port;
	__u8 l4_proto;
	__u8 pad;
};
_Static_assert(sizeof(struct service_key6) == 20, "service_key6");

struct service {
	__u64 pick_seed; /* the same on every balancer of a group */
	__u32 id;
	__u32 flow_salt;  /* a reused id never matches an old flow */
	__u32 ring_line;  /* first line of its ring */
	__u32 ring_slots; /* 0: no ring */
	__u8 scheduler;   /* enum scheduler */
	__u8 forward;     /* enum forward */
	__u8 pad[6];
};
_Static_assert(sizeof(struct service) == 32, "service");

/* A ring is a run of lines; slot i is line i / 32, entry i % 32. */
#define RING_LINE_SLOTS 32
struct ring_line {
	__u16 backend[RING_LINE_SLOTS];
};
_Static_assert(sizeof(struct ring_line) == 64, "one cache line");

#define BACKEND_F_ALIVE 0x1  /* its flows go on going there */
#define BACKEND_F_USABLE 0x2 /* new flows may go there */

/* A backend belongs to one service.  The first line is all that dsr reads;
 * flags and ifindex are one 8-byte store.
 */
struct backend {
	__u32 flags;
	__u32 ifindex; /* 0: out where it came in */
	__u8 mac[6];   /* next hop */
	__u8 source_mac[6];
	__u8 forward;                     /* enum forward */
	__u8 family;                      /* 4 or 6: of addr */
	__u16 mtu;                        /* of the way to it, bytes of IP packet; 0: unknown */
	__u16 timeout_ticks[FLOW_STATES]; /* idle timeout by flow state */
	__u16 service;
	__u8 pad[22];
	/* second line: encapsulation and identity */
	__be32 addr[4];
	__be32 source_addr[4]; /* of the outer header */
	__u8 pad2[32];
};
_Static_assert(sizeof(struct backend) == 128, "two cache lines");

/* Per CPU: element cpu * backends + id.  Row `cpus` (one past the last CPU) is
 * written by the agent: what it closed itself when it swept the flow table.
 * opened - closed is the number of slots embryonic, acked or established.
 */
struct backend_counters {
	__u64 packets;
	__u64 bytes;       /* of IP packets as the client sent them */
	__u64 opened;      /* flows recorded */
	__u64 closed;      /* FIN, RST, evicted or expired */
	__u64 established; /* flows that stopped being embryonic */
	__u64 pad[3];
};
_Static_assert(sizeof(struct backend_counters) == 64, "one cache line");

/* Per CPU: element cpu * services + id; service 0 counts what is for none. */
struct service_counters {
	__u64 reason[REASON_COUNT]; /* packets by reason */
	__u64 not_recorded;         /* new flows for which the table had no room */
	/* the agent's row only: what the backends that were removed had counted */
	__u64 gone_packets;
	__u64 gone_bytes;
	__u64 gone_opened;
	__u64 gone_closed;
	__u64 gone_established;
};
_Static_assert(sizeof(struct service_counters) == 128, "two cache lines");

/* One element, written by the agent before the first attach. */
struct settings {
	__u64 flow_key; /* of the flow table's hash, secret, per boot */
	__u64 flow_mul0;
	__u64 flow_mul1;
	__u32 abi;
	__u32 tick_shift; /* a tick is 2^tick_shift jiffies */
	__u32 hz;         /* jiffies per second */
	__u32 pad[7];
};
_Static_assert(sizeof(struct settings) == 64, "settings");

#endif
