/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every map, in packet-path order.  Sizes are -D constants (agent/dataplane/constants.py).
 *
 * Bulk state is in plain arrays that the agent maps into its memory.  All maps but the events are
 * pinned below LB_PIN, unless noted, and outlive the agent and the program.
 */
#ifndef STEELYARD_MAPS_H
#define STEELYARD_MAPS_H

#include "abi.h"

/* BCC's declaration of a table, with its fields in another order.  BCC compiles functions that
 * read and print the types of the first two fields, and we never call them: with key and leaf
 * there, they took 0.9 s of each compilation.  BCC finds all fields by their names.
 */
#undef BPF_F_TABLE
#define BPF_F_TABLE(_table_type, _key_type, _leaf_type, _name, _max_entries, _flags)   \
	struct _name##_table_t {                                                       \
		u32 max_entries;                                                       \
		int flags;                                                             \
		_key_type key;                                                         \
		_leaf_type leaf;                                                       \
		_leaf_type *(*lookup)(_key_type *);                                    \
		int (*update)(_key_type *, _leaf_type *);                              \
		int (*delete)(_key_type *);                                            \
	};                                                                             \
	__attribute__((section("maps/" _table_type))) struct _name##_table_t _name = { \
		.flags = (_flags),                                                     \
		.max_entries = (_max_entries),                                         \
	};                                                                             \
	BPF_ANNOTATE_KV_PAIR(_name, _key_type, _leaf_type)

#define LB_PINNED(name) LB_PIN "/" #name

/* (VIP, port, protocol) -> service.  The agent writes.  Not preallocated: an element of a
 * preallocated hash is reused at once, and a reader on another CPU could see half of the next
 * entry.
 */
BPF_TABLE_PINNED7("hash", struct service_key4, struct service, services4, LB_SERVICE_KEYS,
		  LB_PINNED(services4), BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED7("hash", struct service_key6, struct service, services6, LB_SERVICE_KEYS,
		  LB_PINNED(services6), BPF_F_NO_PREALLOC);

/* One element: which addresses can be ours.  The agent writes. */
BPF_TABLE_PINNED7("array", u32, struct address_filter, addresses, 1, LB_PINNED(addresses),
		  BPF_F_MMAPABLE);

/* An address in a prefix VIP -> the VIP's first address.  The agent writes. */
BPF_TABLE_PINNED7("lpm_trie", struct vip_prefix4, struct vip_prefix, prefixes4, LB_VIP_PREFIXES,
		  LB_PINNED(prefixes4), BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED7("lpm_trie", struct vip_prefix6, struct vip_prefix, prefixes6, LB_VIP_PREFIXES,
		  LB_PINNED(prefixes6), BPF_F_NO_PREALLOC);

/* (VIP, protocol, port) -> first port of the range that the port is in.  The agent writes. */
BPF_TABLE_PINNED7("lpm_trie", struct port_range_key, struct port_range, ranges, LB_PORT_RANGES,
		  LB_PINNED(ranges), BPF_F_NO_PREALLOC);

/* A client's address -> its zone; (service, zone) -> the ring for it.  The agent writes. */
BPF_TABLE_PINNED7("lpm_trie", struct zone_key4, struct zone, zones4, LB_ZONE_PREFIXES,
		  LB_PINNED(zones4), BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED7("lpm_trie", struct zone_key6, struct zone, zones6, LB_ZONE_PREFIXES,
		  LB_PINNED(zones6), BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED7("hash", struct zone_ring_key, struct zone_ring, zone_rings, LB_ZONE_RINGS,
		  LB_PINNED(zone_rings), BPF_F_NO_PREALLOC);

/* (backend, port, protocol) -> nat: the service and backend of an answer; fullnat: the blocks of
 * its ports.  The agent writes.
 */
BPF_TABLE_PINNED7("hash", struct service_key4, struct origin, origins4, LB_ORIGINS,
		  LB_PINNED(origins4), BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED7("hash", struct service_key6, struct origin, origins6, LB_ORIGINS,
		  LB_PINNED(origins6), BPF_F_NO_PREALLOC);

/* (service, QUIC server id) -> backend.  The agent writes. */
BPF_TABLE_PINNED7("hash", struct quic_key, struct quic_server, quic_ids, LB_QUIC_IDS,
		  LB_PINNED(quic_ids), BPF_F_NO_PREALLOC);

/* (addresses, IP id, protocol) -> where the first fragment went.  The packet path writes; the least
 * recently used entries are evicted.
 */
BPF_TABLE_PINNED7("lru_hash", struct fragment_key, struct fragment, fragments, LB_FRAGMENTS,
		  LB_PINNED(fragments), 0);

/* hash of the flow -> eight slots.  The packet path writes; the agent clears expired slots. */
BPF_TABLE_PINNED7("array", u32, struct flow_bucket, flows, LB_FLOW_BUCKETS, LB_PINNED(flows),
		  BPF_F_MMAPABLE);

/* bucket -> the way in which a flow was recorded last, a row of buckets per element.  The packet
 * path writes.  Not pinned.
 */
#define FLOW_LAST_ROW 64
struct flow_last {
	__u8 way[FLOW_LAST_ROW];
};
BPF_F_TABLE("array", u32, struct flow_last, flows_last,
	    (LB_FLOW_BUCKETS + FLOW_LAST_ROW - 1) / FLOW_LAST_ROW, BPF_F_MMAPABLE);

/* bucket * 8 + way -> details of the flow, for people.  The packet path writes. */
BPF_TABLE_PINNED7("array", u32, struct flow_cold, flows_cold, LB_FLOW_BUCKETS *FLOW_WAYS,
		  LB_PINNED(flows_cold), BPF_F_MMAPABLE);

/* bucket * 8 + way -> the waiting request, and the next hop back.  The packet path writes. */
BPF_TABLE_PINNED7("array", u32, struct flow_warm, flows_warm, LB_FLOW_BUCKETS *FLOW_WAYS,
		  LB_PINNED(flows_warm), BPF_F_MMAPABLE);

/* When the SYN of a flow came, by the tag of the flow.  Kept in the flow's own element, it would
 * cost another cache miss for the first packet of a connection that may never be established.
 * Newer entries overwrite older ones.  The packet path writes.  Not pinned.
 */
#define SYN_TIMES 16384
struct syn_time {
	__u32 tag;
	__u32 jiffies;
	__u64 ns; /* monotonic */
};
BPF_ARRAY(syn_times, struct syn_time, SYN_TIMES);

/* What a request met when it came, by the tag of its flow, until it is answered.  Newer entries
 * overwrite older ones.  The packet path writes.  Not pinned.
 */
#define REQUEST_MARKS 8192
struct request_mark {
	__u32 tag;
	__u32 ahead;  /* request bytes that were waiting at its backend */
	__u32 open;   /* connections of its backend */
	__u32 source; /* hash of the client's address (struct sample_source) */
};
BPF_ARRAY(request_marks, struct request_mark, REQUEST_MARKS);

/* When the next reply of ours would be due (ns, monotonic) if all came evenly: element 0 of all
 * together, the others of the sources of each hash (budget.h).  The packet path writes.  Not
 * pinned.
 */
#define BUDGET_SOURCES 4096
BPF_F_TABLE("array", u32, u64, budget_times, 1 + BUDGET_SOURCES, BPF_F_MMAPABLE);

/* Sources that have shown that they are at their address (challenge.h): the low half of a hash, and
 * the tick at which that expires.  The packet path writes.  Not pinned: a client that returns to
 * another program is challenged again.
 */
#define VERIFIED_WAYS 8
#define VERIFIED_BUCKETS (LB_CHALLENGE ? 16384 : 1)
struct verified_bucket {
	__u64 slot[VERIFIED_WAYS];
};
_Static_assert(sizeof(struct verified_bucket) == 64, "one cache line");
BPF_F_TABLE("array", u32, struct verified_bucket, verified, VERIFIED_BUCKETS, BPF_F_MMAPABLE);

/* The trees of blocked sources and of lists (abi.h).  The agent writes. */
BPF_TABLE_PINNED7("array", u32, struct guard_roots, guard_roots, 1, LB_PINNED(guard_roots),
		  BPF_F_MMAPABLE);
BPF_TABLE_PINNED7("array", u32, struct guard_node, guard_nodes, LB_GUARD_NODES,
		  LB_PINNED(guard_nodes), BPF_F_MMAPABLE);

/* service id -> the lists that apply to it.  The agent writes. */
BPF_TABLE_PINNED7("array", u32, struct guard_policy, guard_policies, LB_SERVICES,
		  LB_PINNED(guard_policies), BPF_F_MMAPABLE);

/* cpu -> how many packets the lists have dropped.  The packet path writes. */
BPF_TABLE_PINNED7("array", u32, struct guard_counters, guard_count, LB_ROWS, LB_PINNED(guard_count),
		  BPF_F_MMAPABLE);

/* service id -> its rate limits.  The agent writes. */
BPF_TABLE_PINNED7("array", u32, struct service_limits, service_limits, LB_SERVICES,
		  LB_PINNED(service_limits), BPF_F_MMAPABLE);

/* (source, service) -> what the source has too much of there.  The agent writes. */
BPF_TABLE_PINNED7("hash", struct limited_key, struct limited, limited, LB_LIMITED,
		  LB_PINNED(limited), BPF_F_NO_PREALLOC);

/* cpu * LB_SERVICES + id -> packets beyond a limit.  The packet path writes. */
BPF_TABLE_PINNED7("array", u32, struct limit_counters, limit_count, LB_SERVICES *LB_ROWS,
		  LB_PINNED(limit_count), BPF_F_MMAPABLE);

/* How far sources, networks and services are ahead of their rates (limit.h): for each period the
 * buckets of sources and networks, by hash, and behind them for each period one bucket per service.
 * The packet path writes.  Not pinned: a new program starts with empty buckets.
 */
#define LIMIT_WAYS 4
struct limit_bucket {
	__u64 slot[LIMIT_WAYS];
};
_Static_assert(sizeof(struct limit_bucket) == 32, "half a cache line");
BPF_F_TABLE("array", u32, struct limit_bucket, limit_buckets,
	    LB_LIMITS ? LIMIT_PERIODS * (LIMIT_BUCKETS + LB_SERVICES) : 1, BPF_F_MMAPABLE);

/* (client, VIP, ports) -> the SYN, kept until a backend is usable (hold.h).  The packet path writes,
 * and overwrites the least recent ones; the agent takes them out.  Not pinned: clients send their
 * SYNs again.
 */
#define HELD_SYNS 4096
BPF_F_TABLE("lru_hash", struct held_key, struct held_syn, held_syns, LB_HOLD ? HELD_SYNS : 1, 0);

/* line -> 32 backend ids.  The agent writes, and only to regions that are not in use. */
BPF_TABLE_PINNED7("array", u32, struct ring_line, rings, LB_RING_LINES, LB_PINNED(rings),
		  BPF_F_MMAPABLE);

/* id -> backend; behind the backends, the other balancers.  The agent writes. */
BPF_TABLE_PINNED7("array", u32, struct backend, backends, LB_BACKENDS + PEER_ROWS,
		  LB_PINNED(backends), BPF_F_MMAPABLE);

/* (another balancer's address, our address) -> 1: that balancer is a peer.  The agent writes. */
BPF_TABLE_PINNED7("hash", struct peer_key, struct peer, peers, LB_PEERS, LB_PINNED(peers),
		  BPF_F_NO_PREALLOC);

/* backend id -> the work in front of it.  Packet path and agent write, each its own fields. */
BPF_TABLE_PINNED7("array", u32, struct backend_load, backend_load, LB_BACKENDS,
		  LB_PINNED(backend_load), BPF_F_MMAPABLE);

/* backend id * SAMPLES + n -> what a request met, and which client sent it.  The packet path
 * writes.
 */
BPF_TABLE_PINNED7("array", u32, struct backend_sample, backend_samples, LB_BACKENDS *SAMPLES,
		  LB_PINNED(backend_samples), BPF_F_MMAPABLE);
BPF_TABLE_PINNED7("array", u32, struct sample_source, sample_sources, LB_BACKENDS *SAMPLES,
		  LB_PINNED(sample_sources), BPF_F_MMAPABLE);

/* service id -> totals of its backends, for a bounded `source` scheduler.  Both write, each its
 * fields.
 */
BPF_TABLE_PINNED7("array", u32, struct service_load, service_load, LB_SERVICES,
		  LB_PINNED(service_load), BPF_F_MMAPABLE);

/* service id -> sizes of the heads of its answers.  Both write, each its fields. */
BPF_TABLE_PINNED7("array", u32, struct service_heads, service_heads, LB_SERVICES,
		  LB_PINNED(service_heads), BPF_F_MMAPABLE);

/* backend id -> latency histograms.  The packet path writes. */
BPF_TABLE_PINNED7("array", u32, struct backend_latency, backend_latency, LB_BACKENDS,
		  LB_PINNED(backend_latency), BPF_F_MMAPABLE);

/* fullnat: block and port -> the flow that has the port.  The packet path writes. */
BPF_TABLE_PINNED7("array", u32, struct nat_slot, nat_slots, LB_NAT_SLOTS, LB_PINNED(nat_slots),
		  BPF_F_MMAPABLE);

/* fullnat: number of a source -> its address.  The agent writes. */
BPF_TABLE_PINNED7("array", u32, struct nat_source, nat_sources, 2 * NAT_SOURCES,
		  LB_PINNED(nat_sources), BPF_F_MMAPABLE);

/* cpu * LB_BACKENDS + id -> counters.  The packet path writes the rows of its own CPU, the agent
 * writes the row behind the last CPU.
 */
BPF_TABLE_PINNED7("array", u32, struct backend_counters, backend_count, LB_BACKENDS *LB_ROWS,
		  LB_PINNED(backend_count), BPF_F_MMAPABLE);

/* cpu * LB_SERVICES + id -> counters, likewise. */
BPF_TABLE_PINNED7("array", u32, struct service_counters, service_count, LB_SERVICES *LB_ROWS,
		  LB_PINNED(service_count), BPF_F_MMAPABLE);

/* One element: what is traced.  The agent writes; the packet path counts lost events. */
BPF_TABLE_PINNED7("array", u32, struct trace_control, trace, 1, LB_PINNED(trace), BPF_F_MMAPABLE);

/* Trace events, for the agent to read.  Not pinned: each program has its own ring. */
BPF_RINGBUF_OUTPUT(events, 64);

/* Slots of flows that have just been established, for the agent to announce to the other balancers.
 * Not pinned: each program has its own ring.
 */
BPF_RINGBUF_OUTPUT(established, LB_SYNC ? 64 : 1);

/* cpu -> counters of the exchange with other balancers.  The packet path writes. */
BPF_TABLE_PINNED7("array", u32, struct sync_counters, sync_count, LB_ROWS, LB_PINNED(sync_count),
		  BPF_F_MMAPABLE);

/* One element: keys and time of SYN cookies.  The agent writes. */
BPF_TABLE_PINNED7("array", u32, struct cookie_secret, cookie_secret, 1, LB_PINNED(cookie_secret),
		  BPF_F_MMAPABLE);

/* One element, written by the agent.  Of the settings, the packet path reads only those that can
 * change; all others are compiled into the program.
 */
BPF_TABLE_PINNED7("array", u32, struct settings, settings, 1, LB_PINNED(settings), BPF_F_MMAPABLE);

/* Never read.  The compiler puts into BTF only types that some map holds, and the loader compares
 * these with its own.
 */
struct abi_witness {
	enum reason reason;
	enum forward forward;
	enum scheduler scheduler;
	enum flow_state flow_state;
	enum talk talk;
	enum head_kind head_kind;
	enum event_kind event_kind;
	enum guard_tree guard_tree;
	enum guard_mode guard_mode;
	enum limit limit;
	struct event event;
};
BPF_ARRAY(abi_witness, struct abi_witness, 1);

#endif
