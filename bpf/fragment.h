/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Fragments.  The first one has the ports; where it went is remembered by its IP id, and the others
 * follow it.  A fragment that overtakes the first is passed to the host, and its datagram is lost,
 * as with every balancer that does not reassemble.
 */
#ifndef STEELYARD_FRAGMENT_H
#define STEELYARD_FRAGMENT_H

#include "forward.h"
#include "reply.h"

#define FRAGMENT_S 30 /* ipfrag_time */

/* RFC 791, section 3.2: by protocol and id; RFC 8200, section 4.5: by the id alone. */
static __always_inline void fragment_key_of(const struct packet *p, struct fragment_key *key)
{
	__builtin_memcpy(key->saddr, p->saddr, sizeof(key->saddr));
	__builtin_memcpy(key->daddr, p->daddr, sizeof(key->daddr));
	key->id = p->fragment_id;
	key->l4_proto = p->family == 4 ? p->l4_proto : 0;
}

/* Remembers where a first fragment went. */
static __always_inline void fragment_remember(const struct packet *p, struct scratch *room)
{
	const struct flow_place *place = &room->place;
	const struct route *route = &room->route;
	struct fragment *value = &room->fragment;

	value->seen = bpf_jiffies64();
	value->flow = place->way < FLOW_WAYS ? place->index * FLOW_WAYS + place->way + 1 : 0;
	value->tag = place->tag;
	value->backend = route->backend;
	value->service = route->service;
	value->reply = route->is_reply;
	__builtin_memcpy(value->saddr, route->to.saddr, sizeof(value->saddr));
	__builtin_memcpy(value->daddr, route->to.daddr, sizeof(value->daddr));
	fragment_key_of(p, &room->fragment_key);
	fragments.update(&room->fragment_key, value);
}

/* Fills in the same route as for the first fragment. */
static __always_inline int fragment_route(struct route *route, const struct fragment *first,
					  struct backend **backend)
{
	struct flow_warm *warm;
	__u32 slot;

	__builtin_memcpy(route->to.saddr, first->saddr, sizeof(route->to.saddr));
	__builtin_memcpy(route->to.daddr, first->daddr, sizeof(route->to.daddr));
	if ((LB_NAT || LB_FULLNAT) && first->reply) {
		slot = first->flow - 1;
		warm = flows_warm.lookup(&slot);
		if (!warm)
			return REASON_INTERNAL;
		route_back(route, warm);
		return 0;
	}
	*backend = backends.lookup(&route->backend);
	if (!*backend || !((*backend)->flags & BACKEND_F_ALIVE))
		return REASON_NO_BACKEND;
	route_to(route, *backend);
	return 0;
}

/* Does the slot still belong to the fragment's flow?  Only then is the way back in it the right
 * one.
 */
static __always_inline bool fragment_has_flow(const struct fragment *first)
{
	__u32 slot = first->flow - 1, bucket = slot / FLOW_WAYS;
	struct flow_bucket *flow = flows.lookup(&bucket);

	return flow && slot_tag(flow->slot[slot % FLOW_WAYS]) == first->tag;
}

/* Sends a later fragment after the first one; REASON_NOT_VIP if that was not one of ours. */
static __always_inline int fragment_follow(CTX *ctx, struct packet *p, struct scratch *room,
					   struct backend **backend)
{
	struct backend_counters *counters;
	struct fragment *first;

	fragment_key_of(p, &room->fragment_key);
	first = fragments.lookup(&room->fragment_key);
	if (!first || bpf_jiffies64() - first->seen > FRAGMENT_S * LB_HZ)
		return REASON_NOT_VIP;
	if ((LB_NAT || LB_FULLNAT) && first->reply && !fragment_has_flow(first))
		return REASON_NOT_VIP;
	if (p->len + p->l3_off > ctx_len(ctx) || p->len < p->l4_off)
		return REASON_MALFORMED;
	room->route.service = first->service;
	room->route.backend = first->backend;
	counters = backend_counters_of(first->backend);
	if (counters && first->reply) {
		counters->reply_packets++;
		counters->reply_bytes += p->len;
	} else if (counters) {
		counters->packets++;
		counters->bytes += p->len;
	}
	return fragment_route(&room->route, first, backend);
}

#endif
