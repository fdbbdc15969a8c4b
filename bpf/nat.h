/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* nat and fullnat: rewrite addresses and ports in place, and update the checksums.  The balancer is
 * a router here, so the TTL is decremented.  In fullnat, each source address can use all its ports
 * towards each address and port of a backend.
 */
#ifndef STEELYARD_NAT_H
#define STEELYARD_NAT_H

#include "csum.h"
#include "encap.h"
#include "flow.h"
#include "frame.h"
#include "mask.h"
#include "scratch.h"
#include "service.h"

#define NAT_TRIES 32

/* The keys are stored in whole words: see service_at(). */
static __always_inline struct origin *origin_at(__u8 family, const __be32 *addr, __be16 port,
						__u8 l4_proto)
{
	struct origin *origin;

	if (!LB_IPV6 || family == 4) {
		union {
			struct service_key4 key;
			__u64 word;
		} at = { .word = (__u64)key_tail(port, l4_proto) << 32 | addr[0] };

		origin = origins4.lookup(&at.key);
		keep_calls_apart(4, origin);
	} else {
		union {
			struct service_key6 key;
			__u32 word[5];
		} at;

		__builtin_memcpy(at.word, addr, sizeof(__be32[4]));
		at.word[4] = key_tail(port, l4_proto);
		origin = origins6.lookup(&at.key);
		keep_calls_apart(6, origin);
	}
	return origin;
}

/* Finds the blocks that our source addresses have for a backend's address and port.  `blocks` must
 * not be on the stack.  Returns false if there are none.
 */
static __always_inline bool nat_blocks_find(__u8 family, const __be32 *addr, __be16 port,
					    __u8 l4_proto, __u16 *blocks)
{
	struct origin *origin = origin_at(family, addr, port, l4_proto);

	/* If any source has a block, the first one does. */
	if ((LB_ANY_PORT || LB_RANGES) && (!origin || !origin->block[0]))
		origin = origin_at(family, addr, 0, l4_proto);
	blocks[0] = 0;
	if (origin)
		__builtin_memcpy(blocks, origin->block, sizeof(origin->block));
	step_ends();
	return blocks[0];
}

static __always_inline __u32 nat_index(const __u16 *blocks, __u32 number, __u32 port)
{
	return (blocks[number % NAT_SOURCES] - 1) * LB_NAT_PORTS + port;
}

/* All ones if the NAT slot still belongs to its flow.  0 if it is free, because the flow has left
 * the table, is idle past its timeout, has got another slot, or gives way: it is not proven (so
 * that a forged SYN takes no port), or slot_gives_way().  `broken`: a table is missing.
 */
static __always_inline __u64 nat_held(__u32 index, __u64 owner, __u32 now, bool *broken)
{
	__u32 slot = ((owner >> 32) - 1) & (LB_FLOW_BUCKETS * FLOW_WAYS - 1);
	__u32 bucket = slot / FLOW_WAYS, id;
	struct flow_bucket *flow = flows.lookup(&bucket);
	struct flow_warm *warm = flows_warm.lookup(&slot);
	struct backend *backend;
	__u64 word, held;

	*broken = true;
	if (!flow || !warm)
		return 0;
	word = flow->slot[slot % FLOW_WAYS];
	id = slot_backend(word);
	backend = backends.lookup(&id);
	if (!backend)
		return 0;
	*broken = false;
	held = mask_equal(slot_tag(word), (__u32)owner) & mask_equal(warm->nat, index + 1);
	held &= ~mask_equal(owner, 0) & ~mask_equal(slot_state(word), FLOW_FREE);
	held &= ~mask_equal(slot_state(word), FLOW_EMBRYONIC);
	held &= ~mask_equal(backend->flags & BACKEND_F_ALIVE, 0);
	held &= ~(mask_equal(slot_state(word), FLOW_CLOSING) &
		  mask_less(CLOSING_TICKS - 1, slot_idle_ticks(word, now)));
	/* One tick more on both sides: another CPU may have stamped the slot a tick after `now` was
	 * read, and that must not look like an idle time of nine hours.
	 */
	return held & mask_less(slot_idle_ticks(word, now + 1),
				(__u64)backend->timeout_ticks[slot_state(word)] + 2);
}

static __always_inline void nat_fill(struct nat_slot *slot, const struct packet *p, __u32 service,
				     __u32 backend, __u32 source)
{
	__builtin_memcpy(slot->client, p->saddr, sizeof(slot->client));
	__builtin_memcpy(slot->vip, p->daddr, sizeof(slot->vip));
	slot->client_port = p->sport;
	slot->vip_port = p->dport;
	slot->backend = backend;
	slot->service = service;
	slot->l4_proto = p->l4_proto;
	slot->family = p->family;
	slot->source = source;
}

/* Takes a source and port for a flow: the next free one in turn.  So a port that was given up rests
 * for as long as possible, as the backend may have the old connection in TIME_WAIT.
 */
static __always_inline int nat_take(const struct packet *p, const struct flow *flow,
				    struct flow_warm *warm, struct route *route, __u64 owner)
{
	__u32 first = p->family == 4 ? 0 : NAT_SOURCES;
	struct nat_source *source = nat_sources.lookup(&first);
	struct service_counters *counters = service_counters_of(0);
	__u32 count, start, number, index = 0;
	__u16 *blocks = route->nat_blocks;
	struct nat_slot *taken = NULL;
	bool broken = false;
	__u64 was = 0, held;

	if (!source || !counters || !source->count)
		return REASON_NO_PORT;
	if (!nat_blocks_find(p->family, route->to.daddr, route->to.dport, p->l4_proto, blocks))
		return REASON_NO_PORT;
	count = source->count * LB_NAT_PORTS;
	start = (__u64)bpf_get_smp_processor_id() * count / (LB_ROWS - 1);
	for (int i = 0; i < NAT_TRIES; i++) {
		struct nat_slot *slot;

		index = (start + counters->turn++) % count;
		number = index / LB_NAT_PORTS;
		index = nat_index(blocks, number, index % LB_NAT_PORTS);
		slot = nat_slots.lookup(&index);
		if (!slot)
			break;
		was = slot->owner;
		held = nat_held(index, was, flow->at->now, &broken) & ~mask_equal(was, owner);
		if (broken)
			break;
		if (held)
			continue;
		/* Set this first: a CPU that meets us as the owner checks whether it is so. */
		warm->nat = index + 1;
		if (__sync_val_compare_and_swap(&slot->owner, was, owner) != was)
			continue;
		taken = slot;
		break;
	}
	/* If the flow that had the port came back at this moment, it keeps the port. */
	if (taken && was != owner && nat_held(index, was, flow->at->now, &broken)) {
		__sync_val_compare_and_swap(&taken->owner, owner, was);
		taken = NULL;
	}
	if (!taken) {
		warm->nat = 0;
		return REASON_NO_PORT;
	}
	nat_fill(taken, p, route->service, route->backend, first + number);
	return 0;
}

/* Makes sure that a recorded flow of fullnat has a source and a port, and puts these into its
 * route, of which all else is known.
 */
static __always_inline int nat_bind(const struct packet *p, const struct flow *flow,
				    struct flow_warm *warm, struct route *route)
{
	__u64 owner = (__u64)(flow_slot(flow) + 1) << 32 | flow->at->tag;
	__u32 index = warm->nat - 1, number;
	struct nat_slot *slot = nat_slots.lookup(&index);
	struct nat_source *source;
	int reason;

	if (!warm->nat || !slot || slot->owner != owner || slot->backend != route->backend) {
		reason = nat_take(p, flow, warm, route, owner);
		if (reason)
			return reason;
		index = warm->nat - 1;
		slot = nat_slots.lookup(&index);
		if (!slot)
			return REASON_INTERNAL;
	}
	number = slot->source;
	source = nat_sources.lookup(&number);
	if (!source)
		return REASON_INTERNAL;
	__builtin_memcpy(route->to.saddr, source->addr, sizeof(route->to.saddr));
	route->to.sport = bswap16(LB_NAT_FIRST_PORT + index % LB_NAT_PORTS);
	return 0;
}

#if LB_TC
/* Folds to 32 bits, as the kernel's helpers expect a difference. */
static __always_inline __u32 csum_fold32(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	return sum;
}
#endif

/* Updates the transport checksum.  Under tc it may be one that the sender's card was to finish,
 * which covers only the addresses so far: the kernel's helper knows.
 */
static __always_inline int rewrite_check(CTX *ctx, const struct packet *p, __u32 offset,
					 __sum16 *check, __u64 addresses, __u64 ports)
{
#if LB_TC
	__u64 flags = p->l4_proto == L4_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	__u32 at = bounded(p->l3_off + p->l4_off, L3_OFF_MAX + L4_OFF_MAX) + offset;

	if (p->l4_proto == L4_UDP && !*check)
		return 0;
	if (bpf_l4_csum_replace(ctx, at, 0, csum_fold32(addresses), flags | BPF_F_PSEUDO_HDR))
		return REASON_INTERNAL;
	if (bpf_l4_csum_replace(ctx, at, 0, csum_fold32(ports), flags))
		return REASON_INTERNAL;
#else
	/* UDP without a checksum stays so.  A checksum that comes out as 0 is written as the other
	 * zero of ones' complement (RFC 768).
	 */
	if (p->l4_proto == L4_UDP && !*check)
		return 0;
	*check = csum_update(*check, addresses + ports);
	if (p->l4_proto == L4_UDP && !*check)
		*check = 0xffff;
#endif
	return 0;
}

static __always_inline int rewrite_l4(CTX *ctx, const struct packet *p, const struct rewrite *to,
				      __u64 addresses)
{
	void *data_end = ctx_end(ctx);
	void *l4 = packet_l4(ctx_data(ctx), p);
	__u64 ports =
		csum_change(p->sport | (__u32)p->dport << 16, to->sport | (__u32)to->dport << 16);
	struct udp_header *udp = l4;
	struct tcp_header *tcp = l4;

	if ((void *)(udp + 1) > data_end)
		return REASON_INTERNAL;
	udp->sport = to->sport;
	udp->dport = to->dport;
	if (p->l4_proto == L4_UDP)
		return rewrite_check(ctx, p, __builtin_offsetof(struct udp_header, check),
				     &udp->check, addresses, ports);
	if ((void *)(tcp + 1) > data_end)
		return p->is_fragment ? REASON_MALFORMED : REASON_INTERNAL;
	return rewrite_check(ctx, p, __builtin_offsetof(struct tcp_header, check), &tcp->check,
			     addresses, ports);
}

/* Rewrites the addresses in the IP header; returns what that changes in a sum over them. */
static __always_inline __u64 rewrite_addresses(struct ipv4_header *ip4, struct ipv6_header *ip6,
					       const __be32 *saddr, const __be32 *daddr,
					       __u8 family)
{
	__u64 change;

	if (!LB_IPV6 || family == 4) {
		change = csum_change(ip4->saddr, saddr[0]) + csum_change(ip4->daddr, daddr[0]);
		ip4->saddr = saddr[0];
		ip4->daddr = daddr[0];
		ip4->check = csum_update(ip4->check, change);
	} else {
		change = csum_change_address(6, ip6->saddr, saddr) +
			 csum_change_address(6, ip6->daddr, daddr);
		__builtin_memcpy(ip6->saddr, saddr, sizeof(ip6->saddr));
		__builtin_memcpy(ip6->daddr, daddr, sizeof(ip6->daddr));
	}
	return change;
}

/* Returns the transport checksum of the packet that an ICMP error quotes, if the quote goes that
 * far.
 */
static __always_inline __sum16 *quoted_check(void *l4, void *data_end, const struct packet *p)
{
	struct udp_header *udp = l4;
	struct tcp_header *tcp = l4;

	if (p->l4_proto == L4_UDP)
		return (void *)(udp + 1) <= data_end && udp->check ? &udp->check : NULL;
	if ((void *)(tcp + 1) > data_end || p->len < p->payload_off + sizeof(*tcp) - sizeof(*udp))
		return NULL;
	return &tcp->check;
}

/* Rewrites an ICMP error: the quoted packet becomes the one that its sender sent, and the outer
 * addresses become those that its receiver knows.
 */
static __always_inline int rewrite_quoted(CTX *ctx, const struct packet *p,
					  const struct rewrite *to, bool hide_source)
{
	void *data_end = ctx_end(ctx), *l3 = packet_l3(ctx_data(ctx), p);
	struct icmp_header *icmp = packet_l4(ctx_data(ctx), p);
	void *quote = icmp + 1;
	struct ipv4_header *ip4 = quote, *outer4 = l3;
	struct ipv6_header *ip6 = quote, *outer6 = l3;
	__u64 change = 0, quoted, ports;
	struct udp_header *udp;
	__sum16 *check, old;
	__u32 offset;

	if (p->family == 4) {
		if ((void *)(ip4 + 1) > data_end || (void *)(outer4 + 1) > data_end)
			return REASON_INTERNAL;
		offset = (ip4->version_ihl & 0xf) * 4;
		/* Its own checksum compensates for the change of the quoted IPv4 header. */
		quoted = rewrite_addresses(ip4, ip6, to->daddr, to->saddr, 4);
		hide_source = hide_source || outer4->saddr == p->saddr[0];
		rewrite_addresses(outer4, outer6, hide_source ? to->saddr : &outer4->saddr,
				  to->daddr, 4);
	} else {
		if ((void *)(ip6 + 1) > data_end || (void *)(outer6 + 1) > data_end)
			return REASON_INTERNAL;
		offset = sizeof(*ip6);
		quoted = rewrite_addresses(ip4, ip6, to->daddr, to->saddr, 6);
		change = quoted;
		hide_source = hide_source ||
			      (outer6->saddr[0] == p->saddr[0] && outer6->saddr[1] == p->saddr[1] &&
			       outer6->saddr[2] == p->saddr[2] && outer6->saddr[3] == p->saddr[3]);
		change += rewrite_addresses(outer4, outer6, hide_source ? to->saddr : outer6->saddr,
					    to->daddr, 6);
	}
	udp = quote + bounded(offset, 60);
	if ((void *)(udp + 1) > data_end || (void *)(icmp + 1) > data_end)
		return REASON_INTERNAL;
	ports = csum_change(udp->sport | (__u32)udp->dport << 16,
			    to->dport | (__u32)to->sport << 16);
	change += ports;
	udp->sport = to->dport;
	udp->dport = to->sport;
	/* RFC 5508, section 4.2: rewrite all of the quoted headers. */
	check = quoted_check(udp, data_end, p);
	if (check) {
		old = *check;
		*check = csum_update(old, quoted + ports);
		/* As its sender must have written it (RFC 768). */
		if (p->l4_proto == L4_UDP && !*check)
			*check = 0xffff;
		change += csum_change(old, *check);
	}
	icmp->check = csum_update(icmp->check, change);
	return 0;
}

/* Rewrites the packet and puts it into a frame to `hop`; `backend` is NULL for a packet of a
 * backend.
 */
static __always_inline int nat_send(CTX *ctx, struct packet *p, const struct rewrite *to,
				    const struct hop *hop, bool hide_source,
				    const struct backend *backend)
{
	void *l3, *data_end;
	__u64 addresses;
	int reason;

	if (p->ttl <= 1)
		return REASON_TTL_EXCEEDED;
	if (backend && is_too_big(ctx, p, backend, 0))
		return REASON_TOO_BIG;
	reason = frame_build(ctx, p, hop, 0, 0, eth_proto_of(p->family));
	if (reason)
		return reason;
	l3 = packet_l3(ctx_data(ctx), p);
	data_end = ctx_end(ctx);
	reason = ttl_decrement(l3, data_end, p->family);
	if (reason)
		return reason;
	if (p->quote_off)
		return rewrite_quoted(ctx, p, to, hide_source);
	if (l3 + (p->family == 4 ? sizeof(struct ipv4_header) : sizeof(struct ipv6_header)) >
	    data_end)
		return REASON_INTERNAL;
	addresses = rewrite_addresses(l3, l3, to->saddr, to->daddr, p->family);
	return p->is_later_fragment ? 0 : rewrite_l4(ctx, p, to, addresses);
}

#endif
