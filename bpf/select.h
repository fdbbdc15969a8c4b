/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which backend for a new flow?  A scheduler is a ring and a way to draw from
 * it: maglev takes the first usable backend of the slots that the flow's pick
 * hash names.
 */
#ifndef STEELYARD_SELECT_H
#define STEELYARD_SELECT_H

#include "hash.h"
#include "maps.h"

/* With three of four backends down and the ring not yet rebuilt, 32 draws miss
 * one flow in 10,000.
 */
#define MAGLEV_DRAWS 32

static __always_inline __u32 ring_slot(__u64 hash, __u32 slots)
{
	return ((hash >> 32) * slots) >> 32;
}

/* The backend's id, 0 if none is usable. */
static __always_inline __u32 select_backend(const struct packet *p, const struct service *service,
					    struct backend **backend)
{
	__u64 hash = pick_hash(p, service->pick_seed);
	__u32 slots = service->ring_slots;
	__u32 first = service->ring_line;

	for (int draw = 0; draw < MAGLEV_DRAWS; draw++) {
		__u32 slot = ring_slot(hash, slots);
		__u32 line = first + slot / RING_LINE_SLOTS;
		struct ring_line *ring = rings.lookup(&line);
		__u32 id;

		if (!ring)
			return 0;
		id = ring->backend[slot % RING_LINE_SLOTS];
		*backend = backends.lookup(&id);
		if (id && *backend && (*backend)->flags & BACKEND_F_USABLE)
			return id;
		hash = pick_again(hash);
	}
	return 0;
}

#endif
