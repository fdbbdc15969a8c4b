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

#define STEELYARD_ABI 9

/* Why a packet was not forwarded.  Steps return 0 to go on, or one of these;
 * the entry function alone turns it into an XDP action and counts it.
 */
enum reason {
	REASON_NONE = 0,
	/* passed to the host, untouched */
	REASON_NOT_IP = 1,   /* neither IPv4 nor IPv6 */
	REASON_NOT_VIP = 2,  /* no service has this address, port and protocol */
	REASON_FRAGMENT = 3, /* a later fragment whose first one we have not seen */
	/* dropped, or answered: from here on (REASON_DROP) */
	REASON_MALFORMED = 4,  /* lengths or flags that no sender makes */
	REASON_EXTENSION = 5,  /* IPv6 extension headers without an end */
	REASON_NO_BACKEND = 6, /* no usable backend */
	REASON_NO_FLOW = 7,    /* an ICMP error, a backend's packet, or one of nat and fullnat
				* in the middle of a connection, of no flow we know
				*/
	REASON_NO_ROOM = 8,    /* nat, fullnat: the flow table has no room for it */
	REASON_NO_PORT = 9,    /* fullnat: no source port is free */
	REASON_TTL_EXCEEDED = 10,
	REASON_TOO_BIG = 11,     /* does not fit the path once encapsulated */
	REASON_NO_HEADROOM = 12, /* the driver left no room for the outer header */
	REASON_INTERNAL = 13,    /* a table is missing or inconsistent */
	REASON_HELD = 14,        /* a new flow while new flows are held back (hold.h) */
	/* what no client begins a flow with (guard.h) */
	REASON_MARTIAN = 15,      /* from an address that no client has */
	REASON_BROADCAST = 16,    /* in a frame to more than one host */
	REASON_SOURCE_ROUTE = 17, /* IPv4: a loose or strict source route */
	REASON_PORT_ZERO = 18,
	/* SYN protection (challenge.h) */
	REASON_CHALLENGED = 19, /* a SYN, answered: its sender is to show that it is there; or a
				 * RST that does not show it
				 */
	REASON_VERIFIED = 20,   /* a RST that has shown it */
	/* whom the operator does not want (sources.h) */
	REASON_BLOCKED = 21,     /* its source is blocked */
	REASON_DENIED = 22,      /* it would begin a flow; its source is on a list of the denied */
	REASON_NOT_ALLOWED = 23, /* likewise; its source is on no list of the allowed */
	REASON_LIMITED = 24,     /* it is more than a limit of its service lets in (limit.h) */
	REASON_COUNT = 25,
};
#define REASON_DROP REASON_MALFORMED

enum forward {
	FORWARD_NONE = 0,
	FORWARD_DSR = 1,     /* a new destination MAC, nothing else */
	FORWARD_IPIP = 2,    /* RFC 2003, RFC 2473: outer header to the backend */
	FORWARD_GUE = 3,     /* draft-ietf-intarea-gue, variant 1: outer IP and UDP */
	FORWARD_NAT = 4,     /* destination rewritten; the backend answers through us */
	FORWARD_FULLNAT = 5, /* source rewritten too */
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

/* The life of a flow: state:2 and, above it, awaiting:1 of the slot word.
 * awaiting means "a request waits for its answer"; that takes payload, so the
 * combination with FLOW_EMBRYONIC is free for "answered the SYN-ACK, has sent
 * nothing yet".
 */
#define FLOW_AWAITING 4
enum flow_state {
	FLOW_FREE = 0,
	FLOW_EMBRYONIC = 1,   /* a SYN, or the first packet that we saw */
	FLOW_ESTABLISHED = 2, /* has carried payload after the first packet */
	FLOW_CLOSING = 3,     /* FIN or RST seen */
	FLOW_ACKED = 5,       /* second packet seen, no payload: short timeout */
	FLOW_ESTABLISHED_AWAITING = 6,
	FLOW_CLOSING_AWAITING = 7, /* half-closed: the client has only to listen */
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

/* Of a flow slot, bucket * 8 + way: the bookkeeping that most packets do not
 * touch.  Written by the packet path; what is summed (waiting) changes only by
 * atomic operations, so no byte is ever counted in twice or never taken out.
 */
enum talk {
	TALK_UNKNOWN = 0, /* no payload seen, or not the first */
	TALK_PLAIN = 1,
	TALK_TLS_HANDSHAKE = 2,
	TALK_TLS_FIRST = 3, /* no answer yet: session tickets may come before it */
	TALK_TLS = 4,
	TALK_HTTP2_FIRST = 5, /* no answer yet: SETTINGS may come before it */
	TALK_HTTP2 = 6,
};

/* flow_warm.waiting: above the bytes, whether the agent has taken them out of the sum. */
#define WAITING_FORGOTTEN_SHIFT 32

struct flow_warm {
	__u64 waiting; /* request bytes that wait for the answer's first byte */
	__u64 request; /* ns, monotonic: of the SYN-ACK's answer, then of the newest request byte */
	__u32 nat;     /* fullnat: NAT slot + 1; 0: none */
	__u32 seq;     /* one past the client's highest byte */
	__u32 ack;     /* the server's byte that the answer would start with */
	__u32 request_jiffies; /* when `request` was taken */
	/* nat, fullnat: the way back to the client; copied as three words */
	__u8 mac[6]; /* from whom its packets come */
	__u8 source_mac[6];
	__be16 vlan[4]; /* protocol and control information of each tag, outer first */
	__u8 tags;      /* how many there are */
	__u8 talk;      /* enum talk */
	__u16 interim;  /* bytes since the request that were no answer (waiting.h) */
	__u32 ifindex;  /* nat, fullnat: where the client's packets come in */
	__u32 rtt_us;   /* SYN to ACK */
};
_Static_assert(sizeof(struct flow_warm) == 64, "one cache line");

/* Key (VIP, 0, 0) marks an address as a VIP, whatever the port, or as a source
 * address of fullnat (SERVICE_F_NAT_SOURCE); key (VIP, 0, protocol) is the
 * any-port service.  A port range stands under its first port.
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

/* Which addresses can be ours: VIPs, sources of fullnat, backends of nat, by a hash
 * of 16 bits; and prefix VIPs, by the first 16 bits.  What is not here needs no
 * lookup.  One element; the agent sets a bit before it writes what it stands for.
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

/* Longest prefix match over VIP, protocol and the bits of the port: a port of a
 * range -> the range's first port.
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

/* A service's ring for the clients of a zone; without one, the service's own. */
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
#define SERVICE_F_RESET 0x2       /* without a usable backend: RST, or ICMP unreachable */
#define SERVICE_F_PREFIX 0x4      /* the VIP is a prefix: the address is part of the flow */
#define SERVICE_F_RANGES 0x8      /* of a mark: this VIP has port ranges */
#define SERVICE_F_ANY_PORT 0x10   /* of a mark: this VIP has an any-port service */
#define SERVICE_F_NAT_SOURCE 0x20 /* of a mark: no VIP, but a source address of fullnat */
#define SERVICE_F_CHALLENGE 0x80  /* new clients are challenged */
#define SERVICE_F_ZONES 0x40      /* its rings have levels, and zones may have rings of their own */

#define SERVICE_LIMITS_NEW 0x1     /* of new flows there is a limit */
#define SERVICE_LIMITS_PACKETS 0x2 /* of the packets of a source there is one */
#define SERVICE_LIMITS_HELD 0x4    /* of what a source may have open, or waiting */

struct service {
	__u64 pick_seed; /* the same on every balancer of a group */
	__u32 id;
	__u32 flow_salt;  /* a reused id never matches an old flow */
	__u32 ring_line;  /* first line of its ring; of a NAT source: its number */
	__u32 ring_slots; /* 0: no ring */
	__u8 scheduler;   /* enum scheduler */
	__u8 forward;     /* enum forward */
	__u8 flags;       /* SERVICE_F_* */
	__u8 draws;       /* least-load: how many backends are compared */
	__u8 source_bits; /* source, and least-load with affinity: of the client's address; 0: none */
	__u8 quic_id_len; /* bytes of the server id in QUIC connection ids; 0: none */
	__u16 bound;      /* source: 256ths of the mean load that a backend may have; 0: any */
	__u16 port_last;  /* of a range: its last port; 0: no range */
	__u8 vip_bits;    /* SERVICE_F_PREFIX: length of the prefix */
	__u8 limits;      /* SERVICE_LIMITS_* */
	__u8 cookies;     /* clients that are challenged get SYN cookies (cookie.h) */
	__u8 pad[3];
};
_Static_assert(sizeof(struct service) == 40, "service");

/* A ring is a run of lines; slot i is line i / 32, entry i % 32. */
#define RING_LINE_SLOTS 32
struct ring_line {
	__u16 backend[RING_LINE_SLOTS];
};
_Static_assert(sizeof(struct ring_line) == 64, "one cache line");

#define BACKEND_F_ALIVE 0x1  /* its flows go on going there */
#define BACKEND_F_USABLE 0x2 /* new flows may go there */
#define BACKEND_F_LOAD 0x4   /* a scheduler reads its open connections */

/* A backend belongs to one service.  The first line is all that dsr reads;
 * flags and ifindex are one 8-byte store.
 */
struct backend {
	__u32 flags;
	__u32 ifindex; /* 0: out where it came in */
	/* next hop; copied as three words */
	__u8 mac[6];
	__u8 source_mac[6];
	__be16 vlan[4]; /* protocol and control information of each tag, outer first */
	__u8 tags;      /* how many there are */
	__u8 forward;   /* enum forward */
	__u16 mtu;      /* of the way to it, bytes of IP packet; 0: unknown */
	__u16 timeout_ticks[FLOW_STATES]; /* idle timeout by flow state */
	__u16 service;
	__be16 port; /* nat, fullnat: its own port; 0: the packet's */
	__u8 family; /* 4 or 6: of addr */
	__u8 pad[11];
	/* second line: encapsulation and identity */
	__be32 addr[4];
	__be32 source_addr[4]; /* of the outer header */
	__u32 until;           /* of another balancer: jiffies until which it counts as alive */
	__u8 pad2[28];
};
_Static_assert(sizeof(struct backend) == 128, "two cache lines");

/* Other balancers, which get packets of flows that are not known here, stand in so many
 * rows behind the backends: which row, the flow's tag says, so each row is in use, and
 * several may be the same balancer.  `until` 0: nobody.
 */
#define PEER_ROWS 8

/* From whom such packets are taken: the other balancer's address, and ours. */
struct peer_key {
	__be32 addr[4]; /* IPv4: word 0, the rest 0 */
	__be32 own[4];
};
_Static_assert(sizeof(struct peer_key) == 32, "peer_key");

struct peer {
	__u32 known; /* 1 */
};
_Static_assert(sizeof(struct peer) == 4, "peer");

/* How much a backend has in front of it; what the schedulers compare.  One for
 * all CPUs: the packet path adds and subtracts atomically, and only on the
 * opening and closing of a flow and on requests.  Lower is better:
 *   (queue + kappa * max(0, counted - counted then) + waiting / beta) / weight
 * and without a report that counts, each connection that counts as one:
 *   (counted + waiting / beta) / weight
 * and to that, for each draw, chance is added (score.h, which says what counts).
 */
struct backend_load {
	/* packet path, with BACKEND_F_LOAD */
	__s32 open;      /* flows embryonic, acked or established */
	__s32 embryonic; /* of the open ones */
	__s64 waiting;   /* request bytes that wait for the answer's first byte */
	/* agent */
	__s32 open_fix;         /* what the flow table says beyond that: it is the truth */
	__s32 embryonic_fix;    /* likewise */
	__s64 waiting_fix;      /* likewise */
	__s32 report_open;      /* open + open_fix when the queue was reported */
	__s32 report_embryonic; /* likewise */
	__u32 queue;            /* requests, running and waiting, in 256ths: reported, or guessed */
	__u16 kappa;            /* weight of a connection since the report, in 256ths */
	__u16 is_hot;           /* 1: it has more than it can take; only if all drawn are hot */
	__u32 per_byte;         /* 2^24 / beta, beta the bytes that weigh as one connection */
	__u32 inverse_weight;   /* 2^20 / effective weight */
	__u32 weight;           /* effective */
	__u32 report_until; /* jiffies: from then on the report is old, from report_open to is_hot */
};
_Static_assert(sizeof(struct backend_load) == 64, "one cache line");

/* What a request met and how long it took, the newest of each backend: element
 * id * SAMPLES + n % SAMPLES, n of backend_latency.  The agent learns a backend's speed from them.
 */
#define SAMPLES 32
struct backend_sample {
	__u32 ahead; /* request bytes that waited at the backend when it came */
	__u32 bytes; /* its own */
	__u32 open;  /* connections, its own included */
	__u32 us;    /* to the first byte of the answer; 0: being written */
};
_Static_assert(sizeof(struct backend_sample) == 16, "backend_sample");

/* Of each sample of a service with affinity: whose request it was. */
struct sample_source {
	__u32 hash; /* of the client's address */
	__u32 pad;
};
_Static_assert(sizeof(struct sample_source) == 8, "elements of an array are no smaller");

/* What a service's answers begin with where that cannot be read, under TLS and where only
 * acknowledgements pass: sizes of heads, which the agent writes, and what it finds them
 * by, the newest: element n % HEAD_SAMPLES.
 */
#define HEAD_RANGES 4
#define HEAD_SAMPLES 16
struct head_range {
	__u16 least;
	__u16 most; /* 0: none */
};
enum head_kind {
	HEAD_UNWRITTEN = 0,
	HEAD_FOLLOWED = 1, /* some bytes, and behind a pause the answer */
	HEAD_ALONE = 2,    /* some bytes, and then the client went on */
	HEAD_NONE = 3,     /* the answer at once */
};
struct head_sample {
	__u32 us;    /* from the request to the answer */
	__u32 pause; /* jiffies of it, behind the bytes */
	__u16 bytes;
	__u8 is_first; /* of its connection */
	__u8 kind;     /* enum head_kind */
	__u32 upto;    /* HEAD_FOLLOWED: bytes with the first of the answer's */
};
struct service_heads {
	/* agent */
	struct head_range later[HEAD_RANGES]; /* of answers of a connection but the first */
	struct head_range first[HEAD_RANGES];
	__u8 is_known; /* whether times of answers are those of tokens */
	__u8 probes;
	__u8 probe_mask;
	__u8 pad[29];
	/* packet path */
	__u64 samples; /* how many there have been */
	__u64 pad2[7];
	struct head_sample sample[HEAD_SAMPLES];
};
_Static_assert(sizeof(struct service_heads) == 384, "six cache lines");

/* Of a service with a bounded `source` scheduler: what its backends have together.  Of one with
 * affinity: `escape`.
 */
struct service_load {
	__s64 open;     /* packet path */
	__s64 open_fix; /* agent */
	__u64 weight;   /* agent: sum of the weights of the usable backends */
	__u32 escape;   /* agent: waiting bytes that a client's home may have more than another */
	__u32 pad[9];
};
_Static_assert(sizeof(struct service_load) == 64, "one cache line");

/* Times of a backend, in buckets of half an octave: bucket 0 is below 64 us,
 * bucket 1 + 2k from 64 * 2^k us, bucket 2 + 2k from 96 * 2^k us; the last has
 * no end.  Atomic, once per request.
 */
#define LATENCY_BUCKETS 44
struct backend_latency {
	__u64 first_byte[LATENCY_BUCKETS]; /* request to first byte of the answer */
	__u64 handshake[LATENCY_BUCKETS];  /* SYN to ACK */
	__u64 first_byte_us;               /* sums */
	__u64 handshake_us;
	__u64 samples; /* how many there have been (backend_sample) */
	/* nat, fullnat: requests that were answered with an error (429, 5xx, in plain HTTP), and
	 * that the server left without an answer, by FIN or RST
	 */
	__u64 errors;
	__u64 hangups;
	__u64 pad[3];
};
_Static_assert(sizeof(struct backend_latency) == 768, "twelve cache lines");

/* fullnat: the ports of each source address to each backend's address and port have a block
 * of slots, a slot each.  A slot is free when the flow that `owner` names is no longer in the
 * flow table, or has another slot.
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
	__u8 source; /* number of the source address: blocks may be shared */
	__u8 pad[13];
};
_Static_assert(sizeof(struct nat_slot) == 64, "one cache line");

/* Source addresses of fullnat: IPv4 from element 0, IPv6 from NAT_SOURCES on. */
#define NAT_SOURCES 8
struct nat_source {
	__be32 addr[4];
	__u32 count; /* of the first element of a family: how many there are */
	__u32 pad[3];
};
_Static_assert(sizeof(struct nat_source) == 32, "nat_source");

/* A backend's (address, port, protocol), a service_key, -> nat: whose answer it is; fullnat:
 * which block of nat_slots each source address has there.
 */
struct origin {
	__be32 vip[4];
	__u32 flow_salt;
	__u16 service;
	__u16 backend; /* 0: none of nat */
	__be16 port;   /* that clients know; 0: the backend's */
	__u16 pad[3];
	__u16 block[NAT_SOURCES]; /* + 1, by number of the source in its family; 0: none */
};
_Static_assert(sizeof(struct origin) == 48, "origin");

/* QUIC (draft-ietf-quic-load-balancers): a server id, per service, -> backend. */
struct quic_key {
	__u8 id[8]; /* zeros after its end */
	__u32 service;
	__u32 pad;
};
_Static_assert(sizeof(struct quic_key) == 16, "quic_key");

struct quic_server {
	__u32 backend;
};
_Static_assert(sizeof(struct quic_server) == 4, "quic_server");

/* Where the first fragment of a datagram went; the others follow. */
struct fragment_key {
	__be32 saddr[4];
	__be32 daddr[4];
	__be32 id;
	__u32 l4_proto;
};
_Static_assert(sizeof(struct fragment_key) == 40, "fragment_key");

struct fragment {
	__be32 saddr[4]; /* nat, fullnat: the addresses that it went on with */
	__be32 daddr[4];
	__u64 seen; /* jiffies */
	__u32 flow; /* flow slot + 1 */
	__u16 backend;
	__u16 service;
	__u8 reply; /* of the backend, to the client */
	__u8 pad[3];
	__u32 tag; /* of the flow */
};
_Static_assert(sizeof(struct fragment) == 56, "fragment");

/* Sets of source addresses, as trees over the bits of an address.  A root is a run of
 * GUARD_ROOT_NODES nodes, an entry for each value of the first 16 bits; every node below it
 * has an entry for each value of the next 4.  An entry is GUARD_BRANCH and the index of the
 * next node, or a bit for each list that holds the address.  Node 0 is nobody's.
 */
#define GUARD_BRANCH 0x80000000
#define GUARD_NODE_ENTRIES 16
#define GUARD_ROOT_NODES 4096
struct guard_node {
	__u32 entry[GUARD_NODE_ENTRIES];
};
_Static_assert(sizeof(struct guard_node) == 64, "one cache line");

/* One element: the first node of each tree and how many it has; 0: there is none.  A tree is
 * written where no other one is, and then named here, in one store.
 */
enum guard_tree {
	GUARD_BLOCKS4 = 0, /* sources that are blocked: list 0 */
	GUARD_BLOCKS6 = 1,
	GUARD_LISTS4 = 2,
	GUARD_LISTS6 = 3,
	GUARD_TREES = 4,
};
struct guard_roots {
	__u32 root[GUARD_TREES];
	__u32 nodes[GUARD_TREES]; /* the agent's own note */
	__u64 pad[4];
};
_Static_assert(sizeof(struct guard_roots) == 64, "one cache line");

/* Which lists count for a service, a bit each. */
#define GUARD_LISTS 30
enum guard_mode {
	GUARD_ENFORCE = 0,
	GUARD_DRY_RUN = 1, /* what would be dropped is counted */
	GUARD_OFF = 2,
};
struct guard_policy {
	__u32 allow; /* 0: all */
	__u32 deny;
	__u32 mode; /* enum guard_mode */
	__u32 pad;
};
_Static_assert(sizeof(struct guard_policy) == 16, "guard_policy");

/* Packets that were dropped, or would have been, by list; per CPU: element cpu. */
#define GUARD_COUNT_BLOCKED 30
#define GUARD_COUNT_NOT_ALLOWED 31
struct guard_counters {
	__u64 dropped[32];
	__u64 would_drop[32];
};
_Static_assert(sizeof(struct guard_counters) == 512, "eight cache lines");

/* How much may be asked of a service, and by whom. */
enum limit {
	LIMIT_NEW_SOURCE = 0,  /* new flows of a source: an IPv4 address, or an IPv6 /64 */
	LIMIT_NEW_PREFIX = 1,  /* of a network: /24, or /48 */
	LIMIT_NEW_SERVICE = 2, /* of all */
	LIMIT_PACKETS = 3,     /* packets of a source */
	LIMIT_OPEN = 4,        /* open flows of a source */
	LIMIT_WAITING = 5,     /* request bytes of a source that wait for their answers */
	LIMITS = 6,
};
/* The first so many are rates; the others the agent counts (struct limited_key). */
#define LIMIT_RATES 4
#define LIMIT_PERIODS 3
#define LIMIT_BUCKETS 32768 /* of each period */
/* Times in units of 128 ns. */
struct service_limits {
	__u64 interval[LIMIT_RATES]; /* between two; 0: no limit */
	__u64 ahead[LIMIT_RATES];    /* how far ahead of an even stream somebody may be */
	__u32 first[LIMIT_RATES];    /* the first bucket of the period */
	__u64 pad[6];
};
_Static_assert(sizeof(struct service_limits) == 128, "two cache lines");

/* A source that may begin no flow at a service, because of what it has there -> bits by enum
 * limit, and until when: the agent may be gone, and then nobody sees that it has less.
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

/* Packets that were beyond a limit, and were dropped, or would have been, by enum limit; per
 * CPU: element cpu * services + id, and in the agent's row whose they are.
 */
struct limit_counters {
	__u64 dropped[LIMITS];
	__u64 would_drop[LIMITS];
	__u64 salt; /* of the service (flow_salt): another one with the same id begins anew */
	__u64 pad[3];
};
_Static_assert(sizeof(struct limit_counters) == 128, "two cache lines");

/* Per CPU: element cpu * backends + id.  Row `cpus` (one past the last CPU) is
 * written by the agent: what it closed itself when it swept the flow table.
 * opened - closed is the number of slots embryonic, acked or established.
 */
struct backend_counters {
	__u64 packets;
	__u64 bytes;         /* of IP packets as the client sent them */
	__u64 opened;        /* flows recorded */
	__u64 closed;        /* FIN, RST, evicted or expired */
	__u64 established;   /* flows that stopped being embryonic */
	__u64 reply_packets; /* nat, fullnat: of the backend */
	__u64 reply_bytes;
	__u64 answers; /* requests whose answer's first byte was seen */
};
_Static_assert(sizeof(struct backend_counters) == 64, "one cache line");

/* Per CPU: element cpu * services + id; service 0 counts what is for none. */
struct service_counters {
	__u64 reason[REASON_COUNT]; /* packets by reason */
	__u64 not_recorded;         /* new flows for which the table had no room */
	__u64 replied;              /* packets answered by us: RST, ICMP errors */
	__u64 not_replied;          /* that would have been, but for the limits of answers */
	__u64 turn;                 /* round-robin; of service 0: where fullnat looks for a port */
	/* the agent's row only: what the backends that were removed had counted */
	__u64 gone_packets;
	__u64 gone_bytes;
	__u64 gone_opened;
	__u64 gone_closed;
	__u64 gone_established;
	__u64 gone_reply_packets;
	__u64 gone_reply_bytes;
	__u64 cookies; /* each CPU's: connections that a SYN cookie has begun */
	__u64 pad[3];
};
_Static_assert(sizeof(struct service_counters) == 320, "five cache lines");

/* Of what is exchanged with other balancers, per CPU: element cpu. */
struct sync_counters {
	__u64 untold;     /* flows that were established while the ring had no room */
	__u64 passed_on;  /* packets of unknown flows that went to another balancer */
	__u64 not_passed; /* that did not, because there were too many */
	__u64 taken;      /* packets that another balancer has passed on */
	__u64 strangers;  /* that somebody else has made look like that */
	__u32 window;     /* jiffies: when the time began in which `in_window` went on */
	__u32 in_window;
	__u64 pad[2];
};
_Static_assert(sizeof(struct sync_counters) == 64, "one cache line");

/* What `lbctl trace` follows. */
enum event_kind {
	EVENT_NONE = 0,
	EVENT_DROP = 1,   /* any reason but not-ip and not-vip */
	EVENT_PICK = 2,   /* a backend was chosen for a new flow */
	EVENT_PACKET = 3, /* of a recorded flow, sampled */
	EVENT_REPLY = 4,  /* of a backend, sampled */
	EVENT_ANSWER = 5, /* the first byte of an answer: waited_bytes, waited_us */
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
	__u8 reason; /* enum reason; of EVENT_DROP */
	__u8 l4_proto;
	__u8 family;
	__u8 tcp_flags;
	__u8 state; /* enum flow_state, before the packet */
	__u32 waited_bytes;
	__u32 waited_us;
};
_Static_assert(sizeof(struct event) == 64, "event");

/* One element: what goes into the ring of events.  The agent writes. */
struct trace_control {
	__u32 kinds;   /* bits by enum event_kind; 0: nobody follows */
	__u32 service; /* 0: any */
	__u32 sample; /* EVENT_PACKET and EVENT_REPLY: one in (sample + 1), sample + 1 a power of two */
	__u32 pad;
	__u64 lost; /* packet path: the ring was full */
};
_Static_assert(sizeof(struct trace_control) == 24, "trace_control");

/* One element, written by the agent before the first attach; `held_until` and
 * `services_version` at any time.
 */
#define HOLD_MAX_NS 1000000000
struct settings {
	__u64 flow_key; /* of the flow table's hash, secret, per boot */
	__u64 flow_mul0;
	__u64 flow_mul1;
	__u32 abi;
	__u32 tick_shift; /* a tick is 2^tick_shift jiffies */
	__u32 hz;         /* jiffies per second */
	__u16 nat_first_port;
	__u16 nat_ports;        /* of a block of nat_slots */
	__u64 held_until;       /* ns, monotonic: new flows are held back until then */
	__u64 services_version; /* moves on when a service has changed */
	__u32 pad2[2];
};
_Static_assert(sizeof(struct settings) == 64, "settings");

/* The balancer's and the companion's, in either a table of one element.  The agents write. */
#define COOKIE_KEYS 2
struct cookie_secret {
	__u64 key[2];   /* with which SYN cookies are made (cookie.h) */
	__u64 other[2]; /* that are taken too, while the key changes */
	__u64 keys;     /* how many there are */
	__s64 wall_ns;  /* what the wall clock (UTC) is ahead of the monotonic one */
	__u16 mtu;      /* balancer: of the way to clients, bytes of IP packet */
	__u8 pad[14];
};
_Static_assert(sizeof(struct cookie_secret) == 64, "cookie_secret");

#endif
