/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Step 5: which backend for a new flow?  A scheduler is a ring and a way to draw from it.  A
 * backend that is not usable is passed over by drawing again, before any ring is rebuilt.
 *
 *   maglev       the slots that the flow's hash names; the first usable backend
 *   source       the same by the client's address; a backend over its bound is passed
 *                over once
 *   round-robin  the next slot in turn; each CPU has its own turn
 *   least-conn   all of the ring (or as many draws as we can look at); the fewest open
 *                connections by weight
 *   least-load   a number of draws; the lowest load score; with affinity, the backend that
 *                the client's address names, while it has little more to do than that
 */
#ifndef STEELYARD_SELECT_H
#define STEELYARD_SELECT_H

#include "count.h"
#include "hash.h"
#include "maps.h"
#include "mask.h"
#include "score.h"
#include "scratch.h"
#include "zone.h"

/* With three of four backends down and the ring not rebuilt, 32 draws miss one flow in 10,000. */
#define HASH_DRAWS 32
#define NEAR_DRAWS 8 /* of these, from a zone's ring; then from the service's own */
#define LEAST_CONN_ALL 256
#define LEAST_CONN_DRAWS 16

static __always_inline __u32 ring_slot(__u64 hash, __u32 slots)
{
	return ((hash >> 32) * slots) >> 32;
}

static __always_inline __u32 ring_backend(const struct zone_ring *ring, __u32 slot)
{
	__u32 index = ring->ring_line + slot / RING_LINE_SLOTS;
	struct ring_line *line = rings.lookup(&index);

	return line ? line->backend[slot % RING_LINE_SLOTS] : 0;
}

static __always_inline bool is_usable(__u32 id)
{
	struct backend *backend = backends.lookup(&id);

	return id && backend && backend->flags & BACKEND_F_USABLE;
}

/* Returns the backend that the hash names: in the zone's ring, and after some draws in the
 * service's own.
 */
static __always_inline __u32 drawn_backend(const struct service *service,
					   const struct zone_ring *ring, __u32 draw, __u64 hash)
{
	__u64 near = mask_less(draw, NEAR_DRAWS);
	struct zone_ring from = {};

	if (!LB_ZONES)
		return ring_backend(ring, ring_slot(hash, ring->ring_slots));
	from.ring_line = mask_choose(near, ring->ring_line, service->ring_line);
	from.ring_slots = mask_choose(near, ring->ring_slots, service->ring_slots);
	return ring_backend(&from, ring_slot(hash, from.ring_slots));
}

/* Returns the first usable backend of the slots that the hash names.  Where to start, and where to
 * go on, is kept in memory: from registers, the verifier would follow the rest separately for each
 * draw.
 */
static __always_inline __u32 first_usable(const struct service *service,
					  const struct zone_ring *ring, struct scratch *room)
{
	__u64 hash = room->hash, first = room->draw;

	for (int i = 0; i < HASH_DRAWS; i++) {
		__u32 id;

		if (first + i >= HASH_DRAWS)
			break;
		id = drawn_backend(service, ring, first + i, hash);
		hash = pick_again(hash);
		if (is_usable(id)) {
			room->draw = first + i + 1;
			room->hash = hash;
			return id;
		}
	}
	return 0;
}

/* Selects by hash.  With a bound (source), passes over the first one if it would exceed that. */
static __always_inline __u32 select_hash(const struct service *service,
					 const struct zone_ring *ring, __u64 hash)
{
	/* Looked up again: after a call, the verifier's paths join. */
	struct scratch *room = scratch_room();
	__u32 id;

	if (!room)
		return 0;
	room->draw = 0;
	room->hash = hash;
	step_ends();
	id = first_usable(service, ring, room);
	step_ends();
	if (LB_SOURCE && service->bound && score_is_over(service->id, id, service->bound))
		id = first_usable(service, ring, room);
	return id;
}

/* The turn in a zone's ring.  Each ring has its own: with a shared one, clients of two zones that
 * alternate would make each other's ring skip backends.  Two rings may hash to the same turn, with
 * no worse effect than that.
 */
#define ZONE_TURNS_LOG 10
BPF_PERCPU_ARRAY(zone_turns, u64, 1 << ZONE_TURNS_LOG);

static __always_inline __u64 *turn_of(const struct service *service, const struct zone_ring *ring)
{
	struct service_counters *counters = service_counters_of(service->id);
	__u32 line = ring->ring_line, index;

	if (!LB_ZONES || line == service->ring_line)
		return counters ? &counters->turn : NULL;
	index = line * (__u32)PICK_MUL0 >> (32 - ZONE_TURNS_LOG);
	return zone_turns.lookup(&index);
}

static __always_inline __u32 select_in_turn(const struct service *service,
					    const struct zone_ring *ring)
{
	__u64 *own = turn_of(service, ring), turn;
	__u32 slots = ring->ring_slots;

	if (!own || !slots)
		return 0;
	/* CPUs start far apart, so that they do not pick the same backends in step. */
	turn = (__u64)bpf_get_smp_processor_id() * slots / (LB_ROWS - 1);
	return ring_backend(ring, (turn + (*own)++) % slots);
}

/* Compares all of a ring that holds every backend once.  Their flags need not be checked: a backend
 * that is not usable has no weight, so the worst score.  Ties are broken by the flow's hash, so it
 * is not always the first backend that wins.
 */
static __always_inline __u32 select_fewest(const struct zone_ring *ring, __u64 hash)
{
	__u64 best_rank = SCORE_WORST, best = 0, share;
	__u32 any = ring_backend(ring, ring_slot(hash, ring->ring_slots));
	struct backend_load *load = backend_load.lookup(&any);

	if (!load)
		return 0;
	share = score_share(load);
	for (__u32 first = 0; first < LEAST_CONN_ALL; first += RING_LINE_SLOTS) {
		__u32 index = ring->ring_line + first / RING_LINE_SLOTS;
		struct ring_line *line = rings.lookup(&index);

		if (first >= ring->ring_slots || !line)
			break;
		for (__u32 i = 0; i < RING_LINE_SLOTS; i++) {
			__u32 id = line->backend[i];
			__u64 better, rank;

			load = backend_load.lookup(&id);
			/* This never happens.  Leaving the loop here, with the best so far, would
			 * give the verifier one more path in each round (Argument list too long).
			 */
			if (!load)
				continue;
			rank = score_connections(load, share) << 8;
			rank |= ((((first + i) * PICK_MUL0) ^ hash) * PICK_MUL1) >> 56;
			better = mask_less(rank, best_rank) &
				 mask_less(first + i, ring->ring_slots);
			best_rank = mask_choose(better, rank, best_rank);
			best = mask_choose(better, id, best);
		}
	}
	return best;
}

/* Where a ring has levels (SERVICE_F_ZONES), they follow one another in it, each as long as its
 * share.  The backends that are compared come from one 64th of the ring, so from one level:
 * otherwise a level with less to do would draw more than its share.
 */
#define LEVEL_PART (63ULL << 58)

static __always_inline __u64 level_part(const struct service *service)
{
	return LB_ZONES ?
		       mask_equal(service->flags & SERVICE_F_ZONES, SERVICE_F_ZONES) & LEVEL_PART :
		       0;
}

/* Affinity: selects a client's home, which has the keys and values of its earlier prompts, instead
 * of the best of the draws; unless the best has less to do by more than `escape` waiting bytes,
 * which is the cost of starting afresh there.  The home's score has no random part: without load,
 * every client goes home.
 */
static __always_inline __u32 select_home(const struct service *service,
					 const struct zone_ring *ring, __u64 home_hash, __u32 now,
					 __u64 share, __u64 best, __u64 best_score)
{
	__u32 home = ring_backend(ring, ring_slot(home_hash, ring->ring_slots)), id = service->id;
	struct backend_load *load = backend_load.lookup(&home);
	struct service_load *all = service_load.lookup(&id);
	__u64 score, most, stays;

	if (!load || !all)
		return best;
	score = score_load(load, now, share);
	most = ((__u64)all->escape * load->per_byte >> 16) * load->inverse_weight + best_score + 1;
	/* If nothing that was drawn has a weight, there is nothing to compare. */
	stays = mask_less(score, most) | mask_equal(best_score, SCORE_WORST);
	stays &= ~mask_equal(load->inverse_weight, NO_WEIGHT);
	stays &= ~mask_equal(service->source_bits, 0);
	return mask_choose(stays, home, best);
}

/* Selects the lowest score of a number of draws.  By load, returns 0 if no drawn backend has a
 * weight.
 */
static __always_inline __u32 select_lowest(const struct service *service,
					   const struct zone_ring *ring, __u64 hash,
					   __u64 home_hash, __u32 draws, bool by_load)
{
	__u64 best_score = SCORE_WORST, best = 0, same = level_part(service), scale = 0, share;
	__u32 now = by_load ? bpf_jiffies64() : 0, any;
	struct backend_load *load;

	any = ring_backend(ring, ring_slot(hash, ring->ring_slots));
	load = backend_load.lookup(&any);
	if (!load)
		return 0;
	share = score_share(load);
	for (__u32 draw = 0; draw < LEAST_CONN_DRAWS; draw++) {
		__u32 id = ring_backend(ring, ring_slot(hash, ring->ring_slots));
		__u64 score, better;

		load = backend_load.lookup(&id);
		if (!load || draw >= draws)
			break;
		score = by_load ? score_draw(load, now, share, hash, &scale) :
				  score_connections(load, share);
		better = mask_less(score, best_score);
		best_score = mask_choose(better, score, best_score);
		best = mask_choose(better, id, best);
		hash = mask_choose(same, hash, pick_again(hash));
	}
	if (LB_AFFINITY && by_load)
		best = select_home(service, ring, home_hash, now, share, best, best_score);
	return best;
}

/* Returns the scheduler to use.  A packet that cannot be recorded has to go the same way each time,
 * and so has one from the middle of a connection: these go by the hash, whatever the scheduler.
 * Without a branch, as the verifier would follow both paths through all of a scheduler.
 */
static __always_inline __u32 select_scheduler(const struct packet *p, const struct service *service,
					      const struct flow_place *place, bool answers_cookie)
{
	__u64 goes_on = mask_equal(p->l4_proto, L4_TCP) & mask_equal(p->tcp_flags & TCP_SYN, 0);
	__u64 has_no_room = mask_less(FLOW_WAYS - 1, place->way);
	__u64 is_source = mask_equal(service->scheduler, SCHEDULER_SOURCE);

	if (LB_COOKIES)
		goes_on &= mask_equal(answers_cookie, 0);
	return mask_choose((goes_on | has_no_room) & ~is_source, SCHEDULER_MAGLEV,
			   service->scheduler);
}

/* Returns the backend's id, 0 if none is usable.  `room`: memory for the ring. */
static __always_inline __u32 select_backend(const struct packet *p, const struct service *service,
					    __u32 scheduler, struct zone_ring *room)
{
	const struct zone_ring *ring = ring_for_client(p, service, room);
	__u64 hash = pick_hash(p, service->pick_seed), draw = hash;
	__u32 draws = service->draws, id = 0;

	if (LB_ZONES)
		step_ends();
	/* With affinity, a packet from the middle of a connection goes home, too. */
	if ((LB_SOURCE || LB_AFFINITY) && service->source_bits) {
		hash = source_hash(p, service->source_bits, service->pick_seed);
		draws--; /* the home is one of the backends that are compared */
	}
	if (LB_ROUND_ROBIN && scheduler == SCHEDULER_ROUND_ROBIN)
		id = select_in_turn(service, ring);
	else if (LB_LEAST_LOAD && scheduler == SCHEDULER_LEAST_LOAD)
		id = select_lowest(service, ring, draw, hash, draws, true);
	else if (LB_LEAST_CONN && scheduler == SCHEDULER_LEAST_CONN)
		id = ring->ring_slots <= LEAST_CONN_ALL ?
			     select_fewest(ring, hash) :
			     select_lowest(service, ring, hash, hash, LEAST_CONN_DRAWS, false);
	step_ends();
	/* For maglev and source; and where the backend that another scheduler chose has just become
	 * unusable.
	 */
	if (!is_usable(id))
		id = select_hash(service, ring, hash);
	/* Without a ring, the line may hold another service's.  This is checked last: known any
	 * sooner, it doubles the paths that the verifier follows (Argument list too long).
	 */
	return service->ring_slots ? id : 0;
}

#endif
