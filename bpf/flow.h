/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Step 4: the flow table.  Keeps each flow at its backend.
 *
 * A bucket has eight slots, in one cache line.  A slot changes by one compare-and-swap, so a reader
 * never sees half of a change, and two CPUs never overwrite each other.
 * - Embryonic flows hold at most four of the eight slots, so a flood of SYNs cannot evict an
 *   established flow.  Of these the oldest is replaced first, so an honest client has time until
 *   four more flows come to its bucket.
 * - Any other live slot is reused only when it has been idle for longer than its timeout.
 */
#ifndef STEELYARD_FLOW_H
#define STEELYARD_FLOW_H

#include "count.h"
#include "hash.h"
#include "hold.h"
#include "maps.h"
#include "mask.h"
#include "scratch.h"
#include "slot.h"
#include "trace.h"
#include "waiting.h"

/* Where a flow is in the table: its bucket, and its place there (scratch.h). */
struct flow {
	struct flow_bucket *bucket;
	struct flow_place *at;
};

static __always_inline bool flow_is_recorded(const struct flow *flow)
{
	return flow->at->way < FLOW_WAYS;
}

static __always_inline __u32 flow_slot(const struct flow *flow)
{
	return flow->at->index * FLOW_WAYS + flow->at->way;
}

static __always_inline struct flow_warm *flow_warm_of(const struct flow *flow)
{
	__u32 index = flow_slot(flow);

	return flows_warm.lookup(&index);
}

static __always_inline __u32 flow_clock(void)
{
	return (bpf_jiffies64() >> LB_TICK_SHIFT) & FLOW_STAMP_MASK;
}

static __always_inline void flow_find(__u64 hash, struct flow *flow)
{
	/* A variable of its own: taking the address of a field would keep the whole struct in
	 * memory.
	 */
	__u32 index = (hash >> 32) & (LB_FLOW_BUCKETS - 1);

	flow->at->index = index;
	flow->at->tag = hash;
	flow->at->way = FLOW_WAYS;
	flow->at->now = flow_clock();
	flow->at->is_new = 0;
	flow->bucket = flows.lookup(&index);
	if (!flow->bucket)
		return;
#pragma unroll
	for (int way = 0; way < FLOW_WAYS; way++) {
		__u64 word = flow->bucket->slot[way];

		if (slot_tag(word) == flow->at->tag && slot_state(word)) {
			flow->at->word = word;
			flow->at->way = way;
			return;
		}
	}
}

/* May the slot be given to another flow?  Its timeouts are those of its own service, which are
 * stored with its backend.
 */
static __always_inline bool slot_is_expired(__u64 word, __u32 now)
{
	__u32 id = slot_backend(word);
	struct backend *backend = backends.lookup(&id);

	if (!backend || !(backend->flags & BACKEND_F_ALIVE))
		return true;
	return slot_idle_ticks(word, now) > backend->timeout_ticks[slot_state(word)];
}

/* The way of the bucket in which a flow was recorded last. */
static __always_inline __u8 *flow_last_way(const struct flow *flow)
{
	__u32 row = flow->at->index / FLOW_LAST_ROW;
	struct flow_last *last = flows_last.lookup(&row);

	return last ? &last->way[flow->at->index % FLOW_LAST_ROW] : NULL;
}

/* Returns the way of the oldest embryonic flow of a bucket.  Stamps have a resolution of seconds;
 * of equal stamps, the way next in turn counts as the oldest, as ways are filled from the last one
 * down.
 */
static __always_inline __u32 flow_oldest(struct flow *flow)
{
	__u64 oldest = FLOW_WAYS, oldest_age = 0, oldest_word = 0;
	__u8 *last_way = flow_last_way(flow);
	__u32 last = last_way ? *last_way : 0;

	/* Without a branch, as in flow_room(). */
#pragma unroll
	for (int way = 0; way < FLOW_WAYS; way++) {
		__u64 word = flow->bucket->slot[way], is_older;
		__u64 age = slot_idle_ticks(word, flow->at->now) * FLOW_WAYS +
			    ((way - last) & (FLOW_WAYS - 1));

		is_older = mask_equal(slot_state(word), FLOW_EMBRYONIC);
		is_older = mask_hidden(is_older & ~mask_less(age, oldest_age));
		oldest_age = mask_choose(is_older, age, oldest_age);
		oldest = mask_choose(is_older, way, oldest);
		oldest_word = mask_choose(is_older, word, oldest_word);
	}
	flow->at->word = oldest_word;
	return oldest;
}

/* Returns the way to record a new flow in: a free or expired slot, or one that gives way; or, if
 * embryonic flows hold their share already, the oldest of those.  FLOW_WAYS: no room.
 * flow->at->word becomes the word that the decision was based on: if the slot has changed by the
 * time of the swap, it may hold a flow that must stay.
 */
static __always_inline __u32 flow_room(struct flow *flow)
{
	__u64 embryonic = 0, room = FLOW_WAYS;

	/* Without a branch (mask.h): the verifier would follow every combination of states of the
	 * slots.
	 */
#pragma unroll
	for (int way = 0; way < FLOW_WAYS; way++) {
		__u64 state = slot_state(flow->bucket->slot[way]);

		room = mask_choose(mask_hidden(mask_less(state, 1)), way, room);
		embryonic -= mask_hidden(mask_less(state ^ FLOW_EMBRYONIC, 1));
	}
	if (embryonic >= FLOW_EMBRYONIC_WAYS)
		return flow_oldest(flow);
	if (room < FLOW_WAYS) {
		flow->at->word = 0;
		return room;
	}
	for (int way = 0; way < FLOW_WAYS; way++) {
		flow->at->word = flow->bucket->slot[way & (FLOW_WAYS - 1)];
		if (slot_is_expired(flow->at->word, flow->at->now) ||
		    slot_gives_way(flow->at->word, flow->at->now))
			return way;
	}
	return FLOW_WAYS;
}

static __always_inline bool flow_swap(struct flow *flow, __u32 way, __u64 old, __u64 word)
{
	struct flow_bucket *bucket = flow->bucket;
	__u64 *slot;

	if (!bucket)
		return false;
	slot = &bucket->slot[way & (FLOW_WAYS - 1)];
	return __sync_val_compare_and_swap(slot, old, word) == old;
}

/* Subtracts a flow that gives up its slot from the sums that it was counted in. */
static __always_inline void flow_replaced(__u64 word, const struct flow_warm *warm)
{
	__u32 state = slot_state(word);

	if (slot_is_open(state))
		count_left(slot_backend(word), 1, state == FLOW_EMBRYONIC);
	if (LB_WAITING && slot_awaits(state) && warm)
		waiting_drop((struct flow_warm *)warm, slot_backend(word));
}

/* Reserves a place for a new flow, if there is room: flow->at->way.  If the flow has a slot already
 * (a new connection with old ports, or a backend that is gone), that is reused.
 */
static __always_inline void flow_reserve(struct flow *flow)
{
	if (flow->at->way >= FLOW_WAYS)
		flow->at->way = flow_room(flow);
}

/* Records a new flow at its backend, in its reserved place.  Returns false if there is no place, or
 * if another CPU was faster.
 */
static __always_inline bool flow_record(struct flow *flow, __u32 backend, __u32 state)
{
	__u32 way = flow->at->way;
	__u64 word = slot_word(flow->at->tag, backend, state, flow->at->now);
	__u64 old = flow->at->word;
	__u8 *last = flow_last_way(flow);

	if (way >= FLOW_WAYS || !flow_swap(flow, way, old, word)) {
		flow->at->way = FLOW_WAYS;
		return false;
	}
	flow->at->word = word;
	flow->at->is_new = 1;
	if (last)
		*last = way;
	if (old)
		flow_replaced(old, LB_WAITING ? flow_warm_of(flow) : NULL);
	return true;
}

/* Moves a recorded flow to another state, and sets its stamp to now.  Returns the state that it
 * had, or `next` if nothing was changed.  A packet of the other direction may do the same at the
 * same moment, so the swap is tried again.  A slot that has gone to another flow is left alone, and
 * a flow that has been closed is not opened again, as it no longer counts as open.
 */
static __always_inline __u32 flow_move(struct flow *flow, __u32 next)
{
	__u32 state = slot_state(flow->at->word);

	for (int i = 0; i < 3; i++) {
		__u64 word =
			slot_word(flow->at->tag, slot_backend(flow->at->word), next, flow->at->now);

		state = slot_state(flow->at->word);
		/* Most packets change nothing: then the cache line stays clean for other CPUs. */
		if (word == flow->at->word)
			return next;
		if (flow_swap(flow, flow->at->way, flow->at->word, word))
			return state;
		word = flow->bucket->slot[flow->at->way & (FLOW_WAYS - 1)];
		if (slot_tag(word) != flow->at->tag ||
		    slot_backend(word) != slot_backend(flow->at->word))
			return next;
		if (slot_base(slot_state(word)) == FLOW_CLOSING && slot_base(next) != FLOW_CLOSING)
			return next;
		flow->at->word = word;
	}
	return next;
}

static __always_inline void flow_write_cold(const struct packet *p,
					    const struct endpoints *endpoints, __u32 service,
					    const struct flow *flow)
{
	__u32 index = flow_slot(flow);
	struct flow_cold *cold = flows_cold.lookup(&index);

	if (!cold)
		return;
	__builtin_memcpy(cold->saddr, endpoints->client, sizeof(cold->saddr));
	__builtin_memcpy(cold->daddr, endpoints->vip, sizeof(cold->daddr));
	cold->sport = endpoints->client_port;
	cold->dport = endpoints->vip_port;
	cold->service = service;
	cold->l4_proto = p->l4_proto;
	cold->family = p->family;
	cold->start = bpf_jiffies64();
}

/* Announces a flow that has just been established, as the other balancers must know it before this
 * one fails.  If the ring has no room for it, the agent finds it when it next surveys the table.
 */
static __always_inline void flow_announce(const struct flow *flow)
{
	__u32 slot = flow_slot(flow);
	struct sync_counters *c;

	if (!established.ringbuf_output(&slot, sizeof(slot), 0))
		return;
	c = sync_counters_here();
	if (c)
		c->untold++;
}

/* nat, fullnat: does the client of an embryonic flow acknowledge the last byte that the server has
 * sent?  As a rule this is the SYN-ACK, whose number only its receiver knows.  A UDP flow is proven
 * only by an answer of the server.
 */
static __always_inline bool flow_is_proven(const struct packet *p, const struct flow *flow)
{
	struct flow_warm *warm = flow_warm_of(flow);

	if (!warm)
		return false;
	return mask_equal(p->l4_proto, L4_TCP) & ~mask_equal(warm->ack, 0) &
	       mask_equal(warm->ack, p->ack) & 1;
}

/* Counts the change of state, and announces the flow if it has become established. */
static __always_inline void flow_moved(const struct flow *flow, __u32 state, __u32 next, __u32 id,
				       struct backend_counters *counters)
{
	__u32 closes = slot_base(next) == FLOW_CLOSING && slot_is_open(state);
	__u32 was_embryonic = state == FLOW_EMBRYONIC;

	if (next == state)
		return;
	if (LB_SYNC && slot_base(next) == FLOW_ESTABLISHED && slot_base(state) != FLOW_ESTABLISHED)
		flow_announce(flow);
	if (was_embryonic && !closes && counters)
		counters->established++;
	if (closes || (COUNTS_LOADS && was_embryonic))
		count_left(id, closes, was_embryonic);
}

/* Does the recorded slot decide where the packet goes?  Not if its backend is gone; not for a SYN
 * that begins a new connection with old ports, nor for one that can still go elsewhere because
 * nothing has answered it.
 */
static __always_inline bool flow_decides(const struct packet *p, const struct flow *flow,
					 const struct backend *backend)
{
	__u32 state = slot_state(flow->at->word);

	if (!(backend->flags & BACKEND_F_ALIVE))
		return false;
	if (!(p->tcp_flags & TCP_SYN))
		return true;
	if (slot_base(state) == FLOW_CLOSING)
		return false;
	if (state == FLOW_EMBRYONIC && (!(backend->flags & BACKEND_F_USABLE) || hold_is_on()))
		return false;
	return slot_idle_ticks(flow->at->word, flow->at->now) <= backend->timeout_ticks[state];
}

#endif
