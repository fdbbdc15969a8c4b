/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Sources that the operator does not want.  A packet of a blocked source is dropped before its flow
 * is looked up.  Lists say which sources may begin a flow: they are checked early for a SYN, and
 * for other packets where a backend would be picked, so packets of recorded flows pay nothing for
 * them.
 */
#ifndef STEELYARD_SOURCES_H
#define STEELYARD_SOURCES_H

#include "maps.h"
#include "packet.h"
#include "scratch.h"

/* Notes in `room` which lists of a tree hold the source. */
static __always_inline void source_find(const struct packet *p, __u32 root, struct scratch *room)
{
	__u64 high = (__u64)bswap32(p->saddr[0]) << 32 | bswap32(p->saddr[1]);
	__u64 low = (__u64)bswap32(p->saddr[2]) << 32 | bswap32(p->saddr[3]);
	__u32 index = root + (high >> 52), entry = GUARD_BRANCH;
	struct guard_node *node = guard_nodes.lookup(&index);

	if (node)
		entry = node->entry[high >> 48 & 15];
	for (int depth = 16; depth < (LB_IPV6 ? 128 : 32); depth += 4) {
		if (!(entry & GUARD_BRANCH))
			break;
		index = entry & ~GUARD_BRANCH;
		node = guard_nodes.lookup(&index);
		if (!node)
			break;
		high = depth == 64 ? low : high << (depth == 16 ? 16 : 4);
		entry = node->entry[high >> 60];
	}
	/* If the last entry is a branch, the tree is broken, and counts as holding no source. */
	room->lists = entry & GUARD_BRANCH ? 0 : entry;
}

/* Returns the number of the lowest bit that is set. */
static __always_inline __u32 lowest_bit(__u32 bits)
{
	__u32 lowest = bits & -bits;

	return !!(lowest & 0xaaaaaaaa) | !!(lowest & 0xcccccccc) << 1 |
	       !!(lowest & 0xf0f0f0f0) << 2 | !!(lowest & 0xff00ff00) << 3 |
	       !!(lowest & 0xffff0000) << 4;
}

/* Counts an unwanted packet; returns whether to drop it. */
static __always_inline bool source_drops(const struct guard_policy *policy, __u32 which)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct guard_counters *counters = guard_count.lookup(&cpu);
	bool drops = policy->mode == GUARD_ENFORCE;

	if (counters && drops)
		counters->dropped[which & 31]++;
	else if (counters)
		counters->would_drop[which & 31]++;
	return drops;
}

static __always_inline __u32 source_root(const struct packet *p, __u32 tree4)
{
	__u32 zero = 0;
	struct guard_roots *roots = guard_roots.lookup(&zero);

	return roots ? roots->root[tree4 + (LB_IPV6 && p->family == 6)] : 0;
}

/* Called right after the packet is parsed, where the verifier has few paths to follow. */
static __always_inline void source_look_up(struct packet *p, struct scratch *room)
{
	__u32 root = source_root(p, GUARD_BLOCKS4);

	room->lists = 0;
	if (root)
		source_find(p, root, room);
	step_ends();
	p->is_blocked = !!room->lists;
	step_ends();
}

/* Does the block of the packet's source apply to this service? */
static __always_inline bool block_holds(const struct service *service)
{
	__u32 id = service->id;
	struct guard_policy *policy = guard_policies.lookup(&id);

	return policy && policy->mode != GUARD_OFF && source_drops(policy, GUARD_COUNT_BLOCKED);
}

/* Such a packet is refused before its flow is looked up, as that costs more than all of this. */
static __always_inline bool begins_connection(const struct packet *p)
{
	return p->l4_proto == L4_TCP && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* Returns the noted reason; it is read from memory, as the verifier would follow each way to set
 * it.
 */
static __always_inline int refusal_of(const struct route *route)
{
	return route->refusal == REASON_DENIED ? REASON_DENIED : REASON_NOT_ALLOWED;
}

/* Returns why the source may not begin a flow, or 0. */
static __always_inline int source_unlisted(const struct packet *p, const struct service *service)
{
	__u32 id = service->id, root = source_root(p, GUARD_LISTS4), denied;
	struct guard_policy *policy = guard_policies.lookup(&id);
	struct scratch *room = scratch_room();

	if (!policy || !room || policy->mode == GUARD_OFF || !(policy->allow | policy->deny))
		return 0;
	room->lists = 0;
	if (root)
		source_find(p, root, room);
	step_ends();
	denied = room->lists & policy->deny;
	if (denied)
		return source_drops(policy, lowest_bit(denied)) ? REASON_DENIED : 0;
	if (!policy->allow || room->lists & policy->allow)
		return 0;
	return source_drops(policy, GUARD_COUNT_NOT_ALLOWED) ? REASON_NOT_ALLOWED : 0;
}

#endif
