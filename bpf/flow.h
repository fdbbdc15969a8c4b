/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Step 4: the flow table.  Keeps a flow at its backend.
 *
 * Eight slots a bucket, one cache line.  A slot changes by one compare-and-swap,
 * so a reader never sees half of one and two CPUs never overwrite each other.
 * - embryonic flows hold at most two of the eight, so that a flood of SYNs
 *   cannot evict an established flow;
 * - any other live slot is reused only when idle past its timeout.
 */
#ifndef STEELYARD_FLOW_H
#define STEELYARD_FLOW_H

#include "count.h"
#include "hash.h"
#include "maps.h"
#include "slot.h"

/* A flow's place: its bucket, and where it is or could be recorded. */
struct flow {
	struct flow_bucket *bucket;
	__u32 index; /* of the bucket */
	__u32 tag;
	__u32 way;  /* FLOW_WAYS: not recorded */
	__u32 now;  /* ticks */
	__u64 word; /* what the slot held when we looked */
};

static __always_inline void flow_find(const struct packet *p, const struct service *service,
				      struct flow *flow)
{
	__u64 hash = flow_hash(p, service->flow_salt);

	flow->index = (hash >> 32) & (LB_FLOW_BUCKETS - 1);
	flow->tag = hash;
	flow->way = FLOW_WAYS;
	flow->now = (bpf_jiffies64() >> LB_TICK_SHIFT) & FLOW_STAMP_MASK;
	flow->bucket = flows.lookup(&flow->index);
	if (!flow->bucket)
		return;
#pragma unroll
	for (int way = 0; way < FLOW_WAYS; way++) {
		__u64 word = flow->bucket->slot[way];

		if (slot_tag(word) == flow->tag && slot_state(word)) {
			flow->word = word;
			flow->way = way;
			return;
		}
	}
}

/* May the slot be given to another flow?  Its timeouts are those of its own
 * service, which its backend knows.
 */
static __always_inline bool slot_is_expired(__u64 word, __u32 now)
{
	__u32 id = slot_backend(word);
	struct backend *backend = backends.lookup(&id);

	if (!backend || !(backend->flags & BACKEND_F_ALIVE))
		return true;
	return slot_idle_ticks(word, now) > backend->timeout_ticks[slot_state(word)];
}

/* The way to record a new flow in: a free or expired one, or, where embryonic
 * flows hold their share already, the oldest of those.  FLOW_WAYS: no room.
 * flow->word becomes what the decision was made on: if it has changed by the
 * time of the swap, the slot may hold a flow that must stay.
 */
static __always_inline __u32 flow_room(struct flow *flow)
{
	__u32 embryonic = 0, oldest = FLOW_WAYS, oldest_idle = 0, room = FLOW_WAYS;
	__u64 oldest_word = 0, room_word = 0;

#pragma unroll
	for (int way = 0; way < FLOW_WAYS; way++) {
		__u64 word = flow->bucket->slot[way];
		__u32 state = slot_state(word);

		if (state == FLOW_FREE) {
			room = way;
			room_word = word;
		} else if (state == FLOW_EMBRYONIC) {
			__u32 idle = slot_idle_ticks(word, flow->now);

			embryonic++;
			if (idle >= oldest_idle) {
				oldest_idle = idle;
				oldest = way;
				oldest_word = word;
			}
		}
	}
	if (embryonic >= FLOW_EMBRYONIC_WAYS) {
		flow->word = oldest_word;
		return oldest;
	}
	if (room < FLOW_WAYS) {
		flow->word = room_word;
		return room;
	}
	for (int way = 0; way < FLOW_WAYS; way++) {
		flow->word = flow->bucket->slot[way & (FLOW_WAYS - 1)];
		if (slot_is_expired(flow->word, flow->now))
			return way;
	}
	return FLOW_WAYS;
}

static __always_inline bool flow_swap(struct flow *flow, __u32 way, __u64 old, __u64 word)
{
	__u64 *slot = &flow->bucket->slot[way & (FLOW_WAYS - 1)];

	return __sync_val_compare_and_swap(slot, old, word) == old;
}

/* Records a new flow at its backend; true if there was room.  The slot that it
 * already has (a new connection with old ports, a backend that is gone) goes
 * before any other.
 */
static __always_inline bool flow_record(struct flow *flow, __u32 backend)
{
	__u32 way = flow->way < FLOW_WAYS ? flow->way : flow_room(flow);
	__u64 word = slot_word(flow->tag, backend, FLOW_EMBRYONIC, flow->now);
	__u32 state;

	if (way >= FLOW_WAYS || !flow_swap(flow, way, flow->word, word))
		return false;
	state = slot_state(flow->word);
	if (state != FLOW_FREE && state != FLOW_CLOSING)
		count_closed(slot_backend(flow->word));
	return true;
}

static __always_inline void flow_write_cold(const struct packet *p, const struct service *service,
					    const struct flow *flow)
{
	__u32 index = flow->index * FLOW_WAYS + flow->way;
	struct flow_cold *cold = flows_cold.lookup(&index);

	if (!cold)
		return;
	__builtin_memcpy(cold->saddr, p->saddr, sizeof(cold->saddr));
	__builtin_memcpy(cold->daddr, p->daddr, sizeof(cold->daddr));
	cold->sport = p->sport;
	cold->dport = p->dport;
	cold->service = service->id;
	cold->l4_proto = p->l4_proto;
	cold->family = p->family;
	cold->start = bpf_jiffies64();
}

/* A packet of a recorded flow: moves its state and its stamp. */
static __always_inline void flow_refresh(const struct packet *p, const struct service *service,
					 struct flow *flow, struct backend_counters *counters)
{
	__u32 state = slot_state(flow->word);
	__u32 next = slot_next_state(state, p);
	__u64 word = slot_word(flow->tag, slot_backend(flow->word), next, flow->now);

	/* Most packets change nothing: the line stays clean for other CPUs. */
	if (word == flow->word || !flow_swap(flow, flow->way, flow->word, word))
		return;
	if (next == state)
		return;
	if (state == FLOW_EMBRYONIC && next != FLOW_CLOSING) {
		flow_write_cold(p, service, flow);
		if (counters)
			counters->established++;
	}
	if (next == FLOW_CLOSING && counters)
		counters->closed++;
}

/* Does the slot that was found decide?  Not if its backend is gone; not for a
 * SYN that opens a connection anew with old ports, or that can still go
 * elsewhere because nothing has answered it.
 */
static __always_inline bool flow_stands(const struct packet *p, const struct flow *flow,
					const struct backend *backend)
{
	__u32 state = slot_state(flow->word);

	if (!(backend->flags & BACKEND_F_ALIVE))
		return false;
	if (!(p->tcp_flags & TCP_SYN))
		return true;
	if (state == FLOW_CLOSING)
		return false;
	if (state == FLOW_EMBRYONIC && !(backend->flags & BACKEND_F_USABLE))
		return false;
	return slot_idle_ticks(flow->word, flow->now) <= backend->timeout_ticks[state];
}

#endif
