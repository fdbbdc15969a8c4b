/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which ring is drawn from for this client?  Of a service with SERVICE_F_ZONES, that of
 * the client's zone; the service's own where the client is in none, or the service has
 * no ring for its zone.  Asked only where a backend is picked.
 */
#ifndef STEELYARD_ZONE_H
#define STEELYARD_ZONE_H

#include "maps.h"
#include "packet.h"
#include "scratch.h"
#include "service.h"

/* Of an ICMP error the source is that of the quoted packet's receiver, the client. */
static __always_inline struct zone *zone_of_client(const struct packet *p)
{
	struct zone *zone;

	if (!LB_IPV6 || p->family == 4) {
		struct zone_key4 key = { .prefix_len = 32, .addr = p->saddr[0] };

		zone = zones4.lookup(&key);
		apart(4, zone);
	} else {
		struct zone_key6 key = { .prefix_len = 128 };

		__builtin_memcpy(key.addr, p->saddr, sizeof(key.addr));
		zone = zones6.lookup(&key);
		apart(6, zone);
	}
	return zone;
}

/* A service has its ring's place in the same words as a zone has it. */
static __always_inline const struct zone_ring *ring_of_service(const struct service *service)
{
	_Static_assert(__builtin_offsetof(struct service, ring_slots) ==
			       __builtin_offsetof(struct service, ring_line) + 4,
		       "as in struct zone_ring");
	return (const struct zone_ring *)&service->ring_line;
}

/* Both words at once: the agent may be giving it another ring. */
static __always_inline void ring_copy(struct zone_ring *to, const struct zone_ring *from)
{
	_Static_assert(sizeof(*from) == sizeof(__u64), "one word");
	*(__u64 *)to = *(const __u64 *)from;
}

/* The ring to draw from.  Noted down in `room`, so that what is drawn is one way for the
 * verifier, whatever ring it is.
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
