/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Step 5: which backend for a new flow?  A scheduler is a ring and a way to draw
 * from it.  A backend that is not usable is passed over at the next draw, before
 * any ring is rebuilt.
 *
 *   maglev       the slots that the flow's hash names, the first usable
 *   source       the same by the client's address; one that is over its bound is
 *                passed over once
 *   round-robin  the next slot in turn, each CPU in its own
 *   least-conn   all of the ring (or as many draws as we can look at), fewest
 *                open connections by weight
 *   least-load   so many draws, lowest load score
 */
#ifndef STEELYARD_SELECT_H
#define STEELYARD_SELECT_H

#include "count.h"
#include "hash.h"
#include "maps.h"
#include "mask.h"
#include "score.h"
#include "scratch.h"

/* With three of four backends down and the ring not yet rebuilt, 32 draws miss
 * one flow in 10,000.
 */
#define HASH_DRAWS 32
#define LEAST_CONN_ALL 256
#define LEAST_CONN_DRAWS 16

static __always_inline __u32 ring_slot(__u64 hash, __u32 slots)
{
	return ((hash >> 32) * slots) >> 32;
}

static __always_inline __u32 ring_backend(const struct service *service, __u32 slot)
{
	__u32 line = service->ring_line + slot / RING_LINE_SLOTS;
	struct ring_line *ring = rings.lookup(&line);

	return ring ? ring->backend[slot % RING_LINE_SLOTS] : 0;
}

static __always_inline bool is_usable(__u32 id)
{
	struct backend *backend = backends.lookup(&id);

	return id && backend && backend->flags & BACKEND_F_USABLE;
}

/* The first usable backend of the slots that the hash names.  With a bound
 * (source), the first that would be over it is passed over.
 */
static __always_inline __u32 select_hash(const struct service *service, __u64 hash)
{
	bool may_pass_over = LB_SOURCE && service->bound;

	for (int draw = 0; draw < HASH_DRAWS; draw++) {
		__u32 id = ring_backend(service, ring_slot(hash, service->ring_slots));

		hash = pick_again(hash);
		if (!is_usable(id))
			continue;
		if (!may_pass_over || !score_is_over(service->id, id, service->bound))
			return id;
		may_pass_over = false;
	}
	return 0;
}

static __always_inline __u32 select_in_turn(const struct service *service)
{
	struct service_counters *counters = service_counters_of(service->id);
	__u32 slots = service->ring_slots;
	__u64 turn;

	if (!counters || !slots)
		return 0;
	/* CPUs start far from each other, so that they do not go hand in hand. */
	turn = (__u64)bpf_get_smp_processor_id() * slots / (LB_ROWS - 1);
	return ring_backend(service, (turn + counters->turn++) % slots);
}

/* All of a ring that holds every backend once.  No look at their flags: one that
 * is not usable has no weight, so the worst score.  Equals are told apart by where
 * the flow's hash points, so it is not always the first.
 */
static __always_inline __u32 select_fewest(const struct service *service, __u64 hash)
{
	__u64 best_rank = SCORE_WORST, best = 0;

	for (__u32 first = 0; first < LEAST_CONN_ALL; first += RING_LINE_SLOTS) {
		__u32 line = service->ring_line + first / RING_LINE_SLOTS;
		struct ring_line *ring = rings.lookup(&line);

		if (first >= service->ring_slots || !ring)
			break;
		for (__u32 i = 0; i < RING_LINE_SLOTS; i++) {
			__u32 id = ring->backend[i];
			struct backend_load *load = backend_load.lookup(&id);
			__u64 better, rank;

			if (!load)
				return best;
			rank = score_connections(load) << 8;
			rank |= ((((first + i) * PICK_MUL0) ^ hash) * PICK_MUL1) >> 56;
			better = mask_less(rank, best_rank) &
				 mask_less(first + i, service->ring_slots);
			best_rank = mask_choose(better, rank, best_rank);
			best = mask_choose(better, id, best);
		}
	}
	return best;
}

/* The lowest score of so many draws. */
static __always_inline __u32 select_lowest(const struct service *service, __u64 hash, __u32 draws,
					   bool by_load)
{
	__u64 best_score = SCORE_WORST, best = 0;

	for (__u32 draw = 0; draw < LEAST_CONN_DRAWS; draw++) {
		__u32 id = ring_backend(service, ring_slot(hash, service->ring_slots));
		struct backend_load *load = backend_load.lookup(&id);
		__u64 score, better;

		if (!load || draw >= draws)
			break;
		score = by_load ? score_load(load) : score_connections(load);
		better = mask_less(score, best_score);
		best_score = mask_choose(better, score, best_score);
		best = mask_choose(better, id, best);
		hash = pick_again(hash);
	}
	return best;
}

/* A packet that is not recorded has to go the same way each time, and so has one that
 * goes on with a connection: whatever the scheduler, by the hash.  Without a branch, of
 * which the verifier would follow both ends through all of a scheduler.
 */
static __always_inline __u32 select_scheduler(const struct packet *p, const struct service *service,
					      const struct flow_place *place)
{
	__u64 goes_on = mask_equal(p->l4_proto, L4_TCP) & mask_equal(p->tcp_flags & TCP_SYN, 0);
	__u64 has_no_room = mask_less(FLOW_WAYS - 1, place->way);
	__u64 is_source = mask_equal(service->scheduler, SCHEDULER_SOURCE);

	return mask_choose((goes_on | has_no_room) & ~is_source, SCHEDULER_MAGLEV,
			   service->scheduler);
}

/* The backend's id, 0 if none is usable. */
static __always_inline __u32 select_backend(const struct packet *p, const struct service *service,
					    __u32 scheduler)
{
	__u64 hash = pick_hash(p, service->pick_seed);
	__u32 id = 0;

	if (LB_SOURCE && scheduler == SCHEDULER_SOURCE)
		hash = source_hash(p, service->source_bits, service->pick_seed);
	else if (LB_ROUND_ROBIN && scheduler == SCHEDULER_ROUND_ROBIN)
		id = select_in_turn(service);
	else if (LB_LEAST_LOAD && scheduler == SCHEDULER_LEAST_LOAD)
		id = select_lowest(service, hash, service->draws, true);
	else if (LB_LEAST_CONN && scheduler == SCHEDULER_LEAST_CONN)
		id = service->ring_slots <= LEAST_CONN_ALL ?
			     select_fewest(service, hash) :
			     select_lowest(service, hash, LEAST_CONN_DRAWS, false);
	step_ends();
	/* maglev and source; and what the others chose may have gone just now. */
	if (!is_usable(id))
		id = select_hash(service, hash);
	/* Where there is no ring, another one may have been, or is.  Asked last: known any
	 * sooner, it doubles what the verifier follows (Argument list too long).
	 */
	return service->ring_slots ? id : 0;
}

#endif
