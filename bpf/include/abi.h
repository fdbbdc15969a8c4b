/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The only structs and enums that the kernel programs and Python share.
 *
 * agent/dataplane/abi.py mirrors this file; tests/abi and the loader compare both with the BTF of
 * the compiled program.  Only fixed-width scalars, explicit padding and 1-D arrays; no bit-fields.
 * A change of a size, an offset or a value here raises STEELYARD_ABI.  That number is part of the
 * pin path, so tables of another layout are never opened by mistake.  Padding, which is always zero,
 * may get a name if zero is what the field means to programs that do not know it.
 *
 * __be* is network order, everything else is host order.  Id 0 is "none".
 */
#ifndef STEELYARD_ABI_H
#define STEELYARD_ABI_H

#include <linux/types.h>

#define STEELYARD_ABI 9

/* Why a packet was not forwarded.  A step returns 0 to go on, or one of these; only the entry
 * function turns it into an XDP action and counts it.
 */
enum reason {
	REASON_NONE = 0,
	/* passed to the host, untouched */
	REASON_NOT_IP = 1,   /* neither IPv4 nor IPv6 */
	REASON_NOT_VIP = 2,  /* no service has this address, port and protocol */
	REASON_FRAGMENT = 3, /* a later fragment whose first fragment we have not seen */
	/* dropped, or answered by us: from here on (REASON_DROP) */
	REASON_MALFORMED = 4,  /* lengths or flags that no sender produces */
	REASON_EXTENSION = 5,  /* more IPv6 extension headers than we follow */
	REASON_NO_BACKEND = 6, /* no usable backend */
	REASON_NO_FLOW = 7,    /* no recorded flow for an ICMP error, for a backend's packet, or for
				* one in the middle of a connection (nat, fullnat)
				*/
	REASON_NO_ROOM = 8,    /* nat, fullnat: the flow table has no room for the flow */
	REASON_NO_PORT = 9,    /* fullnat: no source port is free */
	REASON_TTL_EXCEEDED = 10,
	REASON_TOO_BIG = 11,     /* does not fit the path once encapsulated */
	REASON_NO_HEADROOM = 12, /* the driver left no room for the outer headers */
	REASON_INTERNAL = 13,    /* a table is missing or inconsistent */
	REASON_HELD = 14,        /* a new flow while new flows are held back (hold.h) */
	/* no client begins a flow with such a packet (guard.h) */
	REASON_MARTIAN = 15,      /* from an address that no client can have */
	REASON_BROADCAST = 16,    /* in a frame addressed to more than one host */
	REASON_SOURCE_ROUTE = 17, /* IPv4: a loose or strict source route */
	REASON_PORT_ZERO = 18,
	/* SYN protection (challenge.h) */
	REASON_CHALLENGED = 19, /* a SYN that we answered: its sender must show that it is there; or
				 * a RST that does not show it
				 */
	REASON_VERIFIED = 20,   /* a RST that has shown it */
	/* sources that the operator does not want (sources.h) */
	REASON_BLOCKED = 21,     /* its source is blocked */
	REASON_DENIED = 22,      /* it would begin a flow, and its source is on a deny list */
	REASON_NOT_ALLOWED = 23, /* likewise, and its source is on no allow list */
	REASON_LIMITED = 24,     /* it exceeds a limit of its service (limit.h) */
	REASON_COUNT = 25,
};
#define REASON_DROP REASON_MALFORMED

enum forward {
	FORWARD_NONE = 0,
	FORWARD_DSR = 1,     /* a new destination MAC, and nothing else */
	FORWARD_IPIP = 2,    /* RFC 2003, RFC 2473: outer header to the backend */
	FORWARD_GUE = 3,     /* draft-ietf-intarea-gue, variant 1: outer IP and UDP */
	FORWARD_NAT = 4,     /* the destination is rewritten; the backend answers through us */
	FORWARD_FULLNAT = 5, /* the source is rewritten too */
	FORWARD_PEER = 6,    /* to another balancer (peer.h): GUE, variant 0 */
};

enum scheduler {
	SCHEDULER_NONE = 0,
	SCHEDULER_MAGLEV = 1,
	SCHEDULER_SOURCE = 2,
	SCHEDULER_ROUND_ROBIN = 3,
	SCHEDULER_LEAST_CONN = 4,
	SCHEDULER_LEAST_LOAD = 5,
};

/* The state of a flow: bits state:2 and, above them, awaiting:1 of the slot word.  awaiting means
 * that a request waits for its answer.  That takes payload, which an embryonic flow has not sent,
 * so the combination with FLOW_EMBRYONIC is free to mean "has answered the SYN-ACK and sent nothing
 * yet".
 */
#define FLOW_AWAITING 4
enum flow_state {
	FLOW_FREE = 0,
	FLOW_EMBRYONIC = 1,   /* a SYN, or the first packet that we saw */
	FLOW_ESTABLISHED = 2, /* has carried payload after the first packet */
	FLOW_CLOSING = 3,     /* FIN or RST seen */
	FLOW_ACKED = 5,       /* a second packet seen, but no payload: short timeout */
	FLOW_ESTABLISHED_AWAITING = 6,
	FLOW_CLOSING_AWAITING = 7, /* half-closed: the client only listens */
	FLOW_STATES = 8,
};

/* A slot: tag:32 | backend:16 | state:3 | stamp:13 (ticks of about 4 s). */
#define FLOW_TAG_SHIFT 32
#define FLOW_BACKEND_SHIFT 16
#define FLOW_STATE_SHIFT 13
#define FLOW_STAMP_MASK 0x1fff
#define FLOW_WAYS 8
#define FLOW_EMBRYONIC_WAYS 4

struct flow_bucket {
	__u64 slot[FLOW_WAYS];
};
_Static_assert(sizeof(struct flow_bucket) == 64, "one cache line");

/* Details of an established flow, for people.  Written once, when the flow stops being embryonic;
 * the packet path never reads them.  An IPv4 address is in word 0.
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

/* Bookkeeping of a flow slot (element bucket * 8 + way) that most packets do not touch.  The packet
 * path writes it.  `waiting`, which is part of a sum, changes only by atomic operations, so each
 * byte is added once and taken out once.
 */
enum talk {
	TALK_UNKNOWN = 0, /* no payload seen, or not the first payload */
	TALK_PLAIN = 1,
	TALK_TLS_HANDSHAKE = 2,
	TALK_TLS_FIRST = 3, /* no answer yet: session tickets may come before it */
	TALK_TLS = 4,
	TALK_HTTP2_FIRST = 5, /* no answer yet: SETTINGS may come before it */
	TALK_HTTP2 = 6,
};

/* flow_warm.waiting, above the byte count: the agent has taken these bytes out of the sum. */
#define WAITING_FORGOTTEN_SHIFT 32

struct flow_warm {
	__u64 waiting; /* request bytes that wait for the first byte of the answer */
	__u64 request; /* ns, monotonic: of the handshake's ACK, then of the newest request byte */
	__u32 nat;     /* fullnat: NAT slot + 1; 0: none */
	__u32 seq;     /* one past the client's highest byte */
	__u32 ack;     /* the server's byte that the answer would start with */
	__u32 request_jiffies; /* when `request` was taken, or the last interim bytes came */
	/* nat, fullnat: the next hop back to the client; copied as three words */
	__u8 mac[6]; /* the sender of the client's frames */
	__u8 source_mac[6];
	__be16 vlan[4]; /* protocol and control information of each tag, outer first */
	__u8 tags;      /* number of tags */
	__u8 talk;      /* enum talk */
	__u16 interim;  /* bytes since the request that were no answer (waiting.h) */
	__u32 ifindex;  /* nat, fullnat: the interface by which the client's packets come in */
	__u32 rtt_us;   /* from SYN to ACK */
};
_Static_assert(sizeof(struct flow_warm) == 64, "one cache line");

/* Key (VIP, 0, 0) is a mark: the address is a VIP, whatever the port, or a source address of
 * fullnat (SERVICE_F_NAT_SOURCE).  Key (VIP, 0, protocol) is the any-port service.  A port range is
 * stored under its first port.
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

/* Which addresses can be ours: VIPs, fullnat sources and nat backends, by a 16-bit hash; and prefix
 * VIPs, by their first 16 bits.  An address whose bit is not set needs no lookup.  One element; the
 * agent sets a bit before it writes the entry that the bit stands for.
 */
#define FILTER_WORDS 1024
#define FILTER_MUL0 0x9e3779b1
#define FILTER_MUL1 0x85ebca77
#define FILTER_MUL2 0xc2b2ae3d
#define FILTER_MUL3 0x27d4eb2f
struct address_filter {
	__u64 exact[FILTER_WORDS];
	__u64 prefix[FILTER_WORDS];
};
_Static_assert(sizeof(struct address_filter) == 16384, "two times 65,536 bits");

/* Longest prefix match: an address of a prefix VIP -> the VIP's first address. */
struct vip_prefix4 {
	__u32 prefix_len;
	__be32 addr;
};
_Static_assert(sizeof(struct vip_prefix4) == 8, "vip_prefix4");

struct vip_prefix6 {
	__u32 prefix_len;
	__be32 addr[4];
};
_Static_assert(sizeof(struct vip_prefix6) == 20, "vip_prefix6");

struct vip_prefix {
	__be32 vip[4];
};
_Static_assert(sizeof(struct vip_prefix) == 16, "vip_prefix");

/* Longest prefix match over VIP, protocol and the bits of the port: a port in a range -> the first
 * port of the range.
 */
struct port_range_key {
	__u32 prefix_len; /* 160 + bits of the port */
	__be32 vip[4];    /* IPv4: word 0, the rest 0 */
	__u8 pad[3];
	__u8 l4_proto;
	__be16 port;
	__u16 pad2;
};
_Static_assert(sizeof(struct port_range_key) == 28, "port_range_key");

struct port_range {
	__be16 first;
	__u16 pad;
};
_Static_assert(sizeof(struct port_range) == 4, "port_range");

/* Longest prefix match: a client's address -> the zone that it is in. */
struct zone_key4 {
	__u32 prefix_len;
	__be32 addr;
};
_Static_assert(sizeof(struct zone_key4) == 8, "zone_key4");

struct zone_key6 {
	__u32 prefix_len;
	__be32 addr[4];
};
_Static_assert(sizeof(struct zone_key6) == 20, "zone_key6");

struct zone {
	__u32 id; /* from 1 */
};
_Static_assert(sizeof(struct zone) == 4, "zone");

/* A service's ring for the clients of a zone; without one, the service's own ring counts. */
struct zone_ring_key {
	__u32 service;
	__u32 zone;
};
_Static_assert(sizeof(struct zone_ring_key) == 8, "zone_ring_key");

struct zone_ring {
	__u32 ring_line;
	__u32 ring_slots;
};
_Static_assert(sizeof(struct zone_ring) == 8, "zone_ring");

#define SERVICE_F_WAITING 0x1     /* count the request bytes that wait */
#define SERVICE_F_RESET 0x2       /* without a usable backend: send RST, or ICMP unreachable */
#define SERVICE_F_PREFIX 0x4      /* the VIP is a prefix: the address is part of the flow */
#define SERVICE_F_RANGES 0x8      /* on a mark: this VIP has port ranges */
#define SERVICE_F_ANY_PORT 0x10   /* on a mark: this VIP has an any-port service */
#define SERVICE_F_NAT_SOURCE 0x20 /* on a mark: not a VIP, but a source address of fullnat */
#define SERVICE_F_CHALLENGE 0x80  /* new clients are challenged */
#define SERVICE_F_ZONES 0x40      /* its rings have levels, and zones may have rings of their own */

#define SERVICE_LIMITS_NEW 0x1     /* new flows are limited */
#define SERVICE_LIMITS_PACKETS 0x2 /* packets per source are limited */
#define SERVICE_LIMITS_HELD 0x4    /* a source's open flows, or its waiting bytes, are limited */

struct service {
	__u64 pick_seed; /* the same on every balancer of a group */
	__u32 id;
	__u32 flow_salt;  /* a reused id never matches an old flow */
	__u32 ring_line;  /* first line of its ring; on the mark of a NAT source: its number */
	__u32 ring_slots; /* 0: no ring */
	__u8 scheduler;   /* enum scheduler */
	__u8 forward;     /* enum forward */
	__u8 flags;       /* SERVICE_F_* */
	__u8 draws;       /* least-load: how many backends to compare */
	/* source, and least-load with affinity: how many bits of the client's address; 0: none */
	__u8 source_bits;
	__u8 quic_id_len; /* bytes of the server id in QUIC connection ids; 0: none */
	__u16 bound;      /* source: the load a backend may have, in 256ths of the mean; 0: any */
	__u16 port_last;  /* last port of a range; 0: no range */
	__u8 vip_bits;    /* SERVICE_F_PREFIX: prefix length */
	__u8 limits;      /* SERVICE_LIMITS_* */
	__u8 cookies;     /* challenged clients get SYN cookies (cookie.h) */
	__u8 holds;       /* without a usable backend: new flows wait for one (hold.h) */
	__u8 pad[2];
};
_Static_assert(sizeof(struct service) == 40, "service");

/* The newest SYN of a client that waits for the first usable backend of a service (hold.h). */
#define HELD_FRAME 128
struct held_key {
	__be32 saddr[4]; /* IPv4: word 0 */
	__be32 daddr[4];
	__be16 sport;
	__be16 dport;
};
_Static_assert(sizeof(struct held_key) == 36, "held_key");

struct held_syn {
	__u64 ns;      /* monotonic: when it came */
	__u32 service; /* id */
	__u32 ifindex; /* the interface that it came in by */
	__u32 tag;     /* tc: the VLAN tag that is not in the frame, as on the wire; 0: none */
	__u32 len;     /* of the frame, in bytes */
	__u8 frame[HELD_FRAME];
};
_Static_assert(sizeof(struct held_syn) == 152, "held_syn");

/* A ring is a run of lines; slot i is entry i % 32 of line i / 32. */
#define RING_LINE_SLOTS 32
struct ring_line {
	__u16 backend[RING_LINE_SLOTS];
};
_Static_assert(sizeof(struct ring_line) == 64, "one cache line");

#define BACKEND_F_ALIVE 0x1  /* its recorded flows keep going there */
#define BACKEND_F_USABLE 0x2 /* new flows may go there */
#define BACKEND_F_LOAD 0x4   /* a scheduler reads its open connections */

/* A backend belongs to one service.  dsr reads only the first line; flags and ifindex are written
 * in one 8-byte store.
 */
struct backend {
	__u32 flags;
	__u32 ifindex; /* 0: send out by the interface that the packet came in by */
	/* next hop; copied as three words */
	__u8 mac[6];
	__u8 source_mac[6];
	__be16 vlan[4]; /* protocol and control information of each tag, outer first */
	__u8 tags;      /* number of tags */
	__u8 forward;   /* enum forward */
	__u16 mtu;      /* of the path to it, in bytes of IP packet; 0: unknown */
	__u16 timeout_ticks[FLOW_STATES]; /* idle timeout by flow state */
	__u16 service;
	__be16 port; /* nat, fullnat: its own port; 0: that of the packet */
	__u8 family; /* 4 or 6: of addr */
	__u8 pad[11];
	/* second line: encapsulation and identity */
	__be32 addr[4];
	__be32 source_addr[4]; /* of the outer header */
	__u32 until;           /* of another balancer: the jiffies until which it counts as alive */
	__u8 pad2[28];
};
_Static_assert(sizeof(struct backend) == 128, "two cache lines");

/* The other balancers, which get packets of flows that are not known here, occupy this many rows
 * behind the backends.  A flow's tag names its row, so every row is filled, and several rows may
 * name the same balancer.  `until` 0: no balancer.
 */
#define PEER_ROWS 8

/* A peer that such packets are accepted from: the other balancer's address, and ours. */
struct peer_key {
	__be32 addr[4]; /* IPv4: word 0, the rest 0 */
	__be32 own[4];
};
_Static_assert(sizeof(struct peer_key) == 32, "peer_key");

struct peer {
	__u32 known; /* 1 */
};
_Static_assert(sizeof(struct peer) == 4, "peer");

/* How much work a backend has in front of it; the schedulers compare this.  One element for all
 * CPUs: the packet path adds and subtracts atomically, and only when a flow opens or closes and on
 * requests.  Lower is better:
 *   (queue + kappa * max(0, counted - counted then) + waiting / beta) / weight
 * where "then" is the time of the report.  Without a valid report, each counted connection counts
 * as one:
 *   (counted + waiting / beta) / weight
 * Each draw adds a random amount to that (score.h, which also says what is counted).
 */
struct backend_load {
	/* packet path, with BACKEND_F_LOAD */
	__s32 open;      /* embryonic, acked and established flows */
	__s32 embryonic; /* embryonic flows among the open ones */
	__s64 waiting;   /* request bytes that wait for the first byte of the answer */
	/* agent */
	__s32 open_fix;         /* correction from a survey of the flow table, which is right */
	__s32 embryonic_fix;    /* likewise */
	__s64 waiting_fix;      /* likewise */
	__s32 report_open;      /* open + open_fix at the time of the report of the queue */
	__s32 report_embryonic; /* likewise */
	__u32 queue;            /* running and waiting requests, in 256ths: reported or estimated */
	__u16 kappa;            /* weight of a connection opened since the report, in 256ths */
	__u16 is_hot;           /* 1: overloaded; chosen only if all drawn backends are hot */
	__u32 per_byte;         /* 2^24 / beta, where beta bytes weigh as much as one connection */
	__u32 inverse_weight;   /* 2^20 / effective weight */
	__u32 weight;           /* effective */
	__u32 report_until; /* jiffies: when the report (report_open to is_hot) becomes too old */
};
_Static_assert(sizeof(struct backend_load) == 64, "one cache line");

/* What a request met and how long it took: the newest samples of each backend, in element id *
 * SAMPLES + n % SAMPLES, where n is backend_latency.samples.  The agent learns the backend's speed
 * from them.
 */
#define SAMPLES 32
struct backend_sample {
	__u32 ahead; /* request bytes waiting at the backend when it arrived */
	__u32 bytes; /* the request's own bytes */
	__u32 open;  /* connections, including its own */
	__u32 us;    /* until the first byte of the answer; 0: being written */
};
_Static_assert(sizeof(struct backend_sample) == 16, "backend_sample");

/* For each sample of a service with affinity: which client sent the request. */
struct sample_source {
	__u32 hash; /* of the client's address */
	__u32 pad;
};
_Static_assert(sizeof(struct sample_source) == 8, "elements of an array are no smaller");

/* Sizes of the heads of a service's answers, for where answers cannot be read: under TLS, and where
 * only acknowledgements pass.  The agent writes the sizes.  It finds them from the newest samples,
 * which the packet path writes into element n % HEAD_SAMPLES.
 */
#define HEAD_RANGES 4
#define HEAD_SAMPLES 16
struct head_range {
	__u16 least;
	__u16 most; /* 0: none */
};
enum head_kind {
	HEAD_UNWRITTEN = 0,
	HEAD_FOLLOWED = 1, /* some bytes, then a pause, then the answer */
	HEAD_ALONE = 2,    /* some bytes, and then the client went on */
	HEAD_NONE = 3,     /* the answer, with nothing before it */
};
struct head_sample {
	__u32 us;    /* from the request to the answer */
	__u32 pause; /* jiffies of that time, after the bytes */
	__u16 bytes;
	__u8 is_first; /* it is the first answer of its connection */
	__u8 kind;     /* enum head_kind */
	__u32 upto;    /* HEAD_FOLLOWED: the bytes, plus the first ones of the answer */
};
struct service_heads {
	/* agent */
	struct head_range later[HEAD_RANGES]; /* of all but the first answer of a connection */
	struct head_range first[HEAD_RANGES];
	__u8 is_known; /* whether the measured times of answers are those of tokens */
	__u8 probes;
	__u8 probe_mask;
	__u8 pad[29];
	/* packet path */
	__u64 samples; /* how many there have been */
	__u64 pad2[7];
	struct head_sample sample[HEAD_SAMPLES];
};
_Static_assert(sizeof(struct service_heads) == 384, "six cache lines");

/* Of a service with a bounded `source` scheduler: the totals of its backends.  Of one with
 * affinity: `escape`.
 */
struct service_load {
	__s64 open;     /* packet path */
	__s64 open_fix; /* agent */
	__u64 weight;   /* agent: sum of the weights of the usable backends */
	__u32 escape;   /* agent: waiting bytes by which a client's home may exceed another */
	__u32 pad[9];
};
_Static_assert(sizeof(struct service_load) == 64, "one cache line");

/* Latencies of a backend, in buckets of half an octave: bucket 0 is below 64 us, bucket 1 + 2k
 * starts at 64 * 2^k us, bucket 2 + 2k at 96 * 2^k us; the last bucket is open-ended.  Updated
 * atomically, once per request.
 */
#define LATENCY_BUCKETS 44
struct backend_latency {
	__u64 first_byte[LATENCY_BUCKETS]; /* from the request to the first byte of the answer */
	__u64 handshake[LATENCY_BUCKETS];  /* from SYN to ACK */
	__u64 first_byte_us;               /* sums */
	__u64 handshake_us;
	__u64 samples; /* number of samples so far (backend_sample) */
	/* nat, fullnat: requests that were answered with an error (429 or 5xx, in plain HTTP), and
	 * requests that the server ended by FIN or RST without an answer
	 */
	__u64 errors;
	__u64 hangups;
	__u64 pad[3];
};
_Static_assert(sizeof(struct backend_latency) == 768, "twelve cache lines");

/* fullnat: for each source address and each backend address and port there is a block of slots, one
 * slot per port.  A slot is free when the flow that `owner` names has left the flow table or has
 * another slot.
 */
struct nat_slot {
	__u64 owner; /* (flow slot + 1) << 32 | flow tag; 0: none */
	__be32 client[4];
	__be32 vip[4];
	__be16 client_port;
	__be16 vip_port;
	__u16 backend;
	__u16 service;
	__u8 l4_proto;
	__u8 family;
	__u8 source; /* number of the source address, as blocks may be shared */
	__u8 pad[13];
};
_Static_assert(sizeof(struct nat_slot) == 64, "one cache line");

/* Source addresses of fullnat: IPv4 from element 0, IPv6 from NAT_SOURCES on. */
#define NAT_SOURCES 8
struct nat_source {
	__be32 addr[4];
	__u32 count; /* in the first element of a family: how many sources it has */
	__u32 pad[3];
};
_Static_assert(sizeof(struct nat_source) == 32, "nat_source");

/* A backend's (address, port, protocol), in the form of a service_key, -> nat: the service and
 * backend that its answers belong to; fullnat: the block of nat_slots that each source address has
 * for it.
 */
struct origin {
	__be32 vip[4];
	__u32 flow_salt;
	__u16 service;
	__u16 backend; /* 0: not a backend of nat */
	__be16 port;   /* the port that clients use; 0: the backend's */
	__u16 pad[3];
	__u16 block[NAT_SOURCES]; /* block + 1, by number of the source in its family; 0: none */
};
_Static_assert(sizeof(struct origin) == 48, "origin");

/* QUIC (draft-ietf-quic-load-balancers): a server id, per service, -> backend. */
struct quic_key {
	__u8 id[8]; /* padded with zeros */
	__u32 service;
	__u32 pad;
};
_Static_assert(sizeof(struct quic_key) == 16, "quic_key");

struct quic_server {
	__u32 backend;
};
_Static_assert(sizeof(struct quic_server) == 4, "quic_server");

/* Where the first fragment of a datagram went; the other fragments follow it. */
struct fragment_key {
	__be32 saddr[4];
	__be32 daddr[4];
	__be32 id;
	__u32 l4_proto;
};
_Static_assert(sizeof(struct fragment_key) == 40, "fragment_key");

struct fragment {
	__be32 saddr[4]; /* nat, fullnat: the addresses that it was rewritten to */
	__be32 daddr[4];
	__u64 seen; /* jiffies */
	__u32 flow; /* flow slot + 1 */
	__u16 backend;
	__u16 service;
	__u8 reply; /* from the backend to the client */
	__u8 pad[3];
	__u32 tag; /* of the flow */
};
_Static_assert(sizeof(struct fragment) == 56, "fragment");

/* Sets of source addresses, as trees over the bits of an address.  A root is a run of
 * GUARD_ROOT_NODES nodes, with an entry for each value of the first 16 bits; every node below it
 * has an entry for each value of the next 4 bits.  An entry is either GUARD_BRANCH and the index of
 * the next node, or one bit for each list that holds the address.  Node 0 is unused.
 */
#define GUARD_BRANCH 0x80000000
#define GUARD_NODE_ENTRIES 16
#define GUARD_ROOT_NODES 4096
struct guard_node {
	__u32 entry[GUARD_NODE_ENTRIES];
};
_Static_assert(sizeof(struct guard_node) == 64, "one cache line");

/* One element: the first node of each tree and its number of nodes; 0: no tree.  A new tree is
 * written to nodes that no other tree uses, and then put in place here with one store.
 */
enum guard_tree {
	GUARD_BLOCKS4 = 0, /* blocked sources: list 0 */
	GUARD_BLOCKS6 = 1,
	GUARD_LISTS4 = 2,
	GUARD_LISTS6 = 3,
	GUARD_TREES = 4,
};
struct guard_roots {
	__u32 root[GUARD_TREES];
	__u32 nodes[GUARD_TREES]; /* for the agent's own use */
	__u64 pad[4];
};
_Static_assert(sizeof(struct guard_roots) == 64, "one cache line");

/* Which lists apply to a service, one bit each. */
#define GUARD_LISTS 30
enum guard_mode {
	GUARD_ENFORCE = 0,
	GUARD_DRY_RUN = 1, /* count what would be dropped */
	GUARD_OFF = 2,
};
struct guard_policy {
	__u32 allow; /* 0: everyone */
	__u32 deny;
	__u32 mode; /* enum guard_mode */
	__u32 pad;
};
_Static_assert(sizeof(struct guard_policy) == 16, "guard_policy");

/* Packets that the lists dropped, or would have dropped, by list; per CPU: element cpu. */
#define GUARD_COUNT_BLOCKED 30
#define GUARD_COUNT_NOT_ALLOWED 31
struct guard_counters {
	__u64 dropped[32];
	__u64 would_drop[32];
};
_Static_assert(sizeof(struct guard_counters) == 512, "eight cache lines");

/* How much may be asked of a service, and by one source. */
enum limit {
	LIMIT_NEW_SOURCE = 0,  /* new flows per source: an IPv4 address, or an IPv6 /64 */
	LIMIT_NEW_PREFIX = 1,  /* new flows per network: IPv4 /24, IPv6 /48 */
	LIMIT_NEW_SERVICE = 2, /* new flows of all sources together */
	LIMIT_PACKETS = 3,     /* packets per source */
	LIMIT_OPEN = 4,        /* open flows per source */
	LIMIT_WAITING = 5,     /* request bytes of a source that wait for their answers */
	LIMITS = 6,
};
/* This many, from the first, are rates; the agent counts the others (struct limited_key). */
#define LIMIT_RATES 4
#define LIMIT_PERIODS 3
#define LIMIT_BUCKETS 32768 /* for each period */
/* Times are in units of 128 ns. */
struct service_limits {
	__u64 interval[LIMIT_RATES]; /* between two events; 0: no limit */
	__u64 ahead[LIMIT_RATES];    /* how far a source may be ahead of an even stream */
	__u32 first[LIMIT_RATES];    /* the first bucket of the limit's period */
	__u64 pad[6];
};
_Static_assert(sizeof(struct service_limits) == 128, "two cache lines");

/* A source that may not begin flows at a service because of what it already has open or waiting
 * there -> bits by enum limit, and an expiry time.  Without an agent nobody notices that the source
 * has less again, so entries expire.
 */
struct limited_key {
	__be32 addr[2]; /* IPv4: word 0; IPv6: the first 64 bits */
	__u16 service;
	__u8 family;
	__u8 pad[5];
};
_Static_assert(sizeof(struct limited_key) == 16, "limited_key");

struct limited {
	__u64 until; /* ns, monotonic */
	__u32 limits;
	__u32 pad;
};
_Static_assert(sizeof(struct limited) == 16, "limited");

/* Packets that exceeded a limit and were dropped, or would have been, by enum limit; per CPU:
 * element cpu * services + id.  In the agent's row, `salt` says which service the counts belong to.
 */
struct limit_counters {
	__u64 dropped[LIMITS];
	__u64 would_drop[LIMITS];
	__u64 salt; /* of the service (flow_salt): another one with the same id starts from 0 */
	__u64 pad[3];
};
_Static_assert(sizeof(struct limit_counters) == 128, "two cache lines");

/* Per CPU: element cpu * backends + id.  The agent writes row `cpus` (one past the last CPU), with
 * the flows that it closed itself when it swept the flow table.  opened - closed is the number of
 * embryonic, acked and established slots.
 */
struct backend_counters {
	__u64 packets;
	__u64 bytes;         /* of IP packets as the client sent them */
	__u64 opened;        /* flows recorded */
	__u64 closed;        /* FIN, RST, evicted or expired */
	__u64 established;   /* flows that stopped being embryonic */
	__u64 reply_packets; /* nat, fullnat: packets from the backend */
	__u64 reply_bytes;
	__u64 answers; /* requests for which the first byte of the answer was seen */
};
_Static_assert(sizeof(struct backend_counters) == 64, "one cache line");

/* Per CPU: element cpu * services + id; service 0 counts packets that belong to no service. */
struct service_counters {
	__u64 reason[REASON_COUNT]; /* packets by reason */
	__u64 not_recorded;         /* new flows for which the flow table had no room */
	__u64 replied;              /* packets that we answered ourselves (answer.h) */
	__u64 not_replied;          /* packets not answered because of the budget (budget.h) */
	__u64 turn;                 /* round-robin; of service 0: fullnat's next port */
	/* only in the agent's row: counts of backends that have been removed */
	__u64 gone_packets;
	__u64 gone_bytes;
	__u64 gone_opened;
	__u64 gone_closed;
	__u64 gone_established;
	__u64 gone_reply_packets;
	__u64 gone_reply_bytes;
	__u64 cookies; /* in each CPU's row: connections that began with a SYN cookie */
	__u64 pad[3];
};
_Static_assert(sizeof(struct service_counters) == 320, "five cache lines");

/* Counters of the exchange with other balancers, per CPU: element cpu. */
struct sync_counters {
	__u64 untold;     /* flows established while the ring had no room */
	__u64 passed_on;  /* packets of unknown flows that were passed on to another balancer */
	__u64 not_passed; /* packets not passed on because there were too many */
	__u64 taken;      /* packets that another balancer passed on to us */
	__u64 strangers;  /* the same kind of packet from a sender that is not a peer */
	__u32 window;     /* jiffies: start of the window that `in_window` counts */
	__u32 in_window;
	__u64 pad[2];
};
_Static_assert(sizeof(struct sync_counters) == 64, "one cache line");

/* The kinds of events that `lbctl trace` shows. */
enum event_kind {
	EVENT_NONE = 0,
	EVENT_DROP = 1,   /* any reason except not-ip and not-vip */
	EVENT_PICK = 2,   /* a backend was chosen for a new flow */
	EVENT_PACKET = 3, /* a packet of a recorded flow, sampled */
	EVENT_REPLY = 4,  /* a packet of a backend, sampled */
	EVENT_ANSWER = 5, /* the first byte of an answer, with waited_bytes and waited_us */
	EVENT_CLOSE = 6,  /* FIN or RST */
	EVENT_KINDS = 7,
};

struct event {
	__u64 time; /* ns, monotonic */
	__be32 client[4];
	__be32 vip[4];
	__be16 client_port;
	__be16 vip_port;
	__u16 service;
	__u16 backend;
	__u16 len;   /* of the IP packet */
	__u8 kind;   /* enum event_kind */
	__u8 reason; /* enum reason, for EVENT_DROP */
	__u8 l4_proto;
	__u8 family;
	__u8 tcp_flags;
	__u8 state; /* enum flow_state, before the packet */
	__u32 waited_bytes;
	__u32 waited_us;
};
_Static_assert(sizeof(struct event) == 64, "event");

/* One element: which events go into the ring.  The agent writes it. */
struct trace_control {
	__u32 kinds;   /* bits by enum event_kind; 0: nobody traces */
	__u32 service; /* 0: any */
	/* EVENT_PACKET and EVENT_REPLY: one in (sample + 1), which is a power of two */
	__u32 sample;
	__u32 pad;
	__u64 lost; /* packet path: events lost because the ring was full */
};
_Static_assert(sizeof(struct trace_control) == 24, "trace_control");

/* One element, which the agent writes before the first attach; it writes `held_until` and
 * `services_version` at any time.
 */
#define HOLD_MAX_NS 1000000000
struct settings {
	__u64 flow_key; /* key of the flow table's hash: secret, drawn per boot */
	__u64 flow_mul0;
	__u64 flow_mul1;
	__u32 abi;
	__u32 tick_shift; /* a tick is 2^tick_shift jiffies */
	__u32 hz;         /* jiffies per second */
	__u16 nat_first_port;
	__u16 nat_ports;        /* per block of nat_slots */
	__u64 held_until;       /* ns, monotonic: new flows are held back until then */
	__u64 services_version; /* changes whenever a service has changed */
	__u32 pad2[2];
};
_Static_assert(sizeof(struct settings) == 64, "settings");

/* The secret of the balancer and of the companion, each in a table of one element.  Their agents
 * write it.
 */
#define COOKIE_KEYS 2
struct cookie_secret {
	__u64 key[2];   /* the key that SYN cookies are made with (cookie.h) */
	__u64 other[2]; /* the second key that is accepted, while keys change */
	__u64 keys;     /* number of valid keys */
	__s64 wall_ns;  /* how far the wall clock (UTC) is ahead of the monotonic one */
	__u16 mtu;      /* balancer: of the path to clients, in bytes of IP packet */
	__u8 pad[14];
};
_Static_assert(sizeof(struct cookie_secret) == 64, "cookie_secret");

#endif
