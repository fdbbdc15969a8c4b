/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How much may be asked of a service: by a source, by its network, and by all together.  Packets of
 * recorded flows cost nothing, unless packets are limited.
 *
 * Virtual scheduling (ITU-T I.371, annex A): an event is within its rate if it is not too far ahead
 * of the time at which it is due.  A slot names its owner by 20 bits of a hash, beside the 15 of
 * the bucket, so one source hardly ever pays for another.  A full bucket forgets the owner that is
 * least ahead, so sources that come once do not displace one that asks for a lot.  CPUs do not wait
 * for each other: of two packets at the same moment, one may count for both.
 */
#ifndef STEELYARD_LIMIT_H
#define STEELYARD_LIMIT_H

#include "hash.h"
#include "maps.h"
#include "mask.h"
#include "packet.h"
#include "scratch.h"
#include "sources.h"

/* A slot: tag:20 | due:44, in units of 128 ns (25 days).  */
#define LIMIT_UNIT_SHIFT 7
#define LIMIT_TAG_SHIFT 44
#define LIMIT_DUE ((1ULL << LIMIT_TAG_SHIFT) - 1)

/* Hashes what the limit is counted by: the bucket, and the tag. */
static __always_inline __u64 limit_hash(const struct packet *p, const struct service *service,
					__u32 limit)
{
	__u32 second = p->family == 6 ? p->saddr[1] : 0, first = p->saddr[0];
	__u64 word, hash;

	if (limit == LIMIT_NEW_SERVICE)
		return 0;
	if (limit == LIMIT_NEW_PREFIX && p->family == 4)
		first &= be32(0xffffff00);
	if (limit == LIMIT_NEW_PREFIX)
		second &= be32(0xffff0000);
	word = (__u64)first << 32 | second;
	hash = mix(word ^ LB_FLOW_MUL1, LB_FLOW_MUL0) ^ (service->id << 3 | limit);
	hash = mix(mix(mix(hash ^ LB_FLOW_KEY, LB_FLOW_MUL1), LB_FLOW_MUL0), LB_FLOW_MUL1);
	asm volatile("" : "+r"(hash)); /* as in source_hash_secret() */
	return hash;
}

/* Would the packet exceed a rate?  Returns bit `limit`, or 0, and in `note` what to write if it
 * does not.
 */
static __always_inline __u64 limit_is_beyond(const struct packet *p, const struct service *service,
					     const struct service_limits *rates, __u32 limit,
					     struct limit_note *note)
{
	__u64 interval = rates->interval[limit], ahead = rates->ahead[limit];
	__u64 now = (bpf_ktime_get_ns() >> LIMIT_UNIT_SHIFT) & LIMIT_DUE;
	__u64 hash, tag, mine = 0, debt = 0, best = 1ULL << 62;
	__u32 index = rates->first[limit];
	struct limit_bucket *bucket;

	if (!interval)
		return 0;
	hash = limit_hash(p, service, limit);
	tag = hash >> LIMIT_TAG_SHIFT;
	index += limit == LIMIT_NEW_SERVICE ? service->id : hash & (LIMIT_BUCKETS - 1);
	bucket = limit_buckets.lookup(&index);
	note->index = index;
	if (!bucket)
		return 0;
	/* Take the owner's own slot, or else that of the owner that is least ahead: the lowest of
	 * (left, way), with the own slot counted as if nothing were left in it.  Without a branch
	 * (mask.h).
	 */
#pragma unroll
	for (int way = 0; way < LIMIT_WAYS; way++) {
		__u64 word = bucket->slot[way], left = (word - now) & LIMIT_DUE, rank;

		/* No owner can be further ahead: such a slot is from long ago. */
		left &= mask_hidden(mask_less(left, ahead + interval + 1));
		mine = mask_hidden(mask_less((word >> LIMIT_TAG_SHIFT) ^ tag, 1));
		debt |= left & mine;
		rank = (left & ~mine) * (2 * LIMIT_WAYS) + way + (~mine & LIMIT_WAYS);
		best = mask_choose(mask_hidden(mask_less(rank, best)), rank, best);
	}
	note->way = best;
	note->word = tag << LIMIT_TAG_SHIFT | ((now + debt + interval) & LIMIT_DUE);
	return mask_less(ahead, debt) & 1ULL << limit;
}

static __always_inline void limit_pay(const struct service_limits *rates, __u32 limit,
				      const struct limit_note *note)
{
	__u32 index = note->index;
	struct limit_bucket *bucket = limit_buckets.lookup(&index);

	if (bucket && rates->interval[limit])
		bucket->slot[note->way & (LIMIT_WAYS - 1)] = note->word;
}

/* Returns the limits on held flows that the agent has found the source to exceed; bits by enum
 * limit.
 */
static __always_inline __u64 limit_held(const struct packet *p, const struct service *service,
					__u64 now)
{
	struct limited_key key = { .addr = { p->saddr[0], p->family == 6 ? p->saddr[1] : 0 },
				   .service = service->id,
				   .family = p->family };
	struct limited *found = limited.lookup(&key);

	return found ? found->limits & mask_less(now, found->until) : 0;
}

/* Counts a packet that exceeds a limit; returns whether to drop it. */
static __always_inline bool limit_drops(const struct service *service, __u32 limits)
{
	__u32 id = service->id, index = bpf_get_smp_processor_id() * LB_SERVICES + id;
	struct limit_counters *counters = limit_count.lookup(&index);
	struct guard_policy *policy = guard_policies.lookup(&id);
	__u32 which = lowest_bit(limits);
	bool drops;

	if (!policy || !counters || policy->mode == GUARD_OFF || which >= LIMITS)
		return false;
	drops = policy->mode == GUARD_ENFORCE;
	if (drops)
		counters->dropped[which]++;
	else
		counters->would_drop[which]++;
	return drops;
}

/* May the packet begin a flow?  If so, it is counted.  Returns REASON_LIMITED or 0. */
static __always_inline int limit_new_flow(const struct packet *p, const struct service *service)
{
	__u32 id = service->id;
	struct service_limits *rates = service_limits.lookup(&id);
	struct scratch *room = scratch_room();

	if (!rates || !room)
		return 0;
	room->limits = 0;
	if (service->limits & SERVICE_LIMITS_HELD)
		room->limits = limit_held(p, service, bpf_ktime_get_ns());
	step_ends();
	for (int limit = LIMIT_NEW_SOURCE; limit <= LIMIT_NEW_SERVICE; limit++) {
		room->limits |=
			limit_is_beyond(p, service, rates, limit, &room->limit_notes[limit]);
		step_ends();
	}
	if (room->limits)
		return limit_drops(service, room->limits) ? REASON_LIMITED : 0;
	for (int limit = LIMIT_NEW_SOURCE; limit <= LIMIT_NEW_SERVICE; limit++) {
		limit_pay(rates, limit, &room->limit_notes[limit]);
		step_ends();
	}
	return 0;
}

/* May the source send one more packet?  If so, it is counted.  Returns REASON_LIMITED or 0. */
static __always_inline int limit_packet(const struct packet *p, const struct service *service)
{
	__u32 id = service->id;
	struct service_limits *rates = service_limits.lookup(&id);
	struct scratch *room = scratch_room();

	if (!rates || !room)
		return 0;
	room->limits = limit_is_beyond(p, service, rates, LIMIT_PACKETS, room->limit_notes);
	step_ends();
	if (room->limits)
		return limit_drops(service, room->limits) ? REASON_LIMITED : 0;
	limit_pay(rates, LIMIT_PACKETS, room->limit_notes);
	return 0;
}

#endif
