/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* New flows are held back in two cases.
 *
 * For a moment, while another balancer takes over the VIPs, as it would not know them.  Their first
 * packets are dropped, and the clients retransmit them.
 *
 * While a service that waits for its backends has no usable one.  The newest SYN of each client is
 * kept, and the agent sends it through this program again as soon as there is a backend, which the
 * client's own timer would do only seconds later.
 */
#ifndef STEELYARD_HOLD_H
#define STEELYARD_HOLD_H

#include "ctx.h"
#include "maps.h"
#include "packet.h"
#include "scratch.h"
#include "sources.h"

/* Is it before the agent's deadline?  The hold ends by itself, so an agent that dies or is stopped
 * meanwhile leaves nothing to undo.  A deadline further away than any can be is an error, and holds
 * nothing back.
 */
static __always_inline bool hold_is_on(void)
{
	__u32 index = 0;
	struct settings *row = settings.lookup(&index);
	__u64 until = row ? row->held_until : 0;

	/* Read the clock only if needed: it costs as much as the rest of a SYN. */
	return until && until - bpf_ktime_get_ns() - 1 < HOLD_MAX_NS;
}

/* Copies the frame, whose headers are readable. */
static __always_inline bool held_copy(CTX *ctx, struct held_syn *held)
{
	__u32 len = ctx_len(ctx), words = len / 8, at;
	void *data = ctx_data(ctx), *data_end = ctx_end(ctx);

	if (len > HELD_FRAME)
		return false;
	for (int i = 0; i < HELD_FRAME / 8; i++) {
		__u64 *word = data + 8 * i;

		if (i >= words || (void *)(word + 1) > data_end)
			break;
		((__u64 *)held->frame)[i] = *word;
	}
	for (int i = 0; i < 7; i++) {
		at = bounded(8 * words + i, HELD_FRAME - 1);
		if (at >= len || data + at + 1 > data_end)
			break;
		held->frame[at] = *((__u8 *)data + at);
	}
	held->len = len;
	return true;
}

/* Is this packet of a new flow to wait for a backend?  If it is a SYN, it is kept.  A SYN that
 * does not fit (it carries data) waits for its client's timer, as do flows of UDP.
 */
static __always_inline bool hold_new(CTX *ctx, const struct packet *p,
				     const struct service *service)
{
	struct scratch *room = scratch_room();
	struct held_syn *held;
	struct held_key *key;

	if (!LB_HOLD || !service->holds || !room)
		return false;
	if (p->l4_proto != L4_TCP)
		return true;
	if (!begins_connection(p))
		return false;
	key = &room->held_key;
	held = &room->held_syn;
	if (p->is_fragment || !held_copy(ctx, held))
		return true;
	__builtin_memcpy(key->saddr, p->saddr, sizeof(key->saddr));
	__builtin_memcpy(key->daddr, p->daddr, sizeof(key->daddr));
	key->sport = p->sport;
	key->dport = p->dport;
	held->ns = bpf_ktime_get_ns();
	held->service = service->id;
	held->ifindex = ctx_ifindex(ctx);
	held->tag = 0;
	ctx_hidden_tag(ctx, &held->tag);
	held_syns.update(key, held);
	return true;
}

#endif
