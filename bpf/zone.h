/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which ring to draw from for this client: for a service with SERVICE_F_ZONES, the ring of the
 * client's zone; else, or if the client is in no zone, or its zone has no ring, the service's own.
 * Looked up only where a backend is picked.
 */
#ifndef STEELYARD_ZONE_H
#define STEELYARD_ZONE_H

#include "maps.h"
#include "packet.h"
#include "scratch.h"
#include "service.h"

/* Returns the client's zone.  The source of an ICMP error is that of the quoted packet's receiver,
 * the client.
 */
static __always_inline struct zone *zone_of_client(const struct packet *p)
{
	struct zone *zone;

	if (!LB_IPV6 || p->family == 4) {
		struct zone_key4 key = { .prefix_len = 32, .addr = p->saddr[0] };

		zone = zones4.lookup(&key);
		keep_calls_apart(4, zone);
	} else {
		struct zone_key6 key = { .prefix_len = 128 };

		__builtin_memcpy(key.addr, p->saddr, sizeof(key.addr));
		zone = zones6.lookup(&key);
		keep_calls_apart(6, zone);
	}
	return zone;
}

/* Returns the service's own ring: its place is stored in the same words as in a zone's. */
static __always_inline const struct zone_ring *ring_of_service(const struct service *service)
{
	_Static_assert(__builtin_offsetof(struct service, ring_slots) ==
			       __builtin_offsetof(struct service, ring_line) + 4,
		       "as in struct zone_ring");
	return (const struct zone_ring *)&service->ring_line;
}

/* Copies both words at once, as the agent may be writing another ring. */
static __always_inline void ring_copy(struct zone_ring *to, const struct zone_ring *from)
{
	_Static_assert(sizeof(*from) == sizeof(__u64), "one word");
	*(__u64 *)to = *(const __u64 *)from;
}

/* Returns the ring to draw from.  It is copied to `room`, so that drawing is one path for the
 * verifier, whichever ring it is.
 */
static __always_inline const struct zone_ring *
ring_for_client(const struct packet *p, const struct service *service, struct zone_ring *room)
{
	struct zone_ring_key key = {};
	struct zone_ring *near;
	struct zone *zone;

	if (!LB_ZONES)
		return ring_of_service(service);
	ring_copy(room, ring_of_service(service));
	if (!(service->flags & SERVICE_F_ZONES))
		return room;
	zone = zone_of_client(p);
	if (!zone)
		return room;
	key.service = service->id;
	key.zone = zone->id;
	near = zone_rings.lookup(&key);
	if (near)
		ring_copy(room, near);
	return room;
}

#endif
