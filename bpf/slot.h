/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The 64-bit word of a flow table slot, and how a packet moves its state. */
#ifndef STEELYARD_SLOT_H
#define STEELYARD_SLOT_H

#include "abi.h"
#include "packet.h"

static __always_inline __u64 slot_word(__u32 tag, __u32 backend, __u32 state, __u32 stamp)
{
	return (__u64)tag << FLOW_TAG_SHIFT | (__u64)backend << FLOW_BACKEND_SHIFT |
	       state << FLOW_STATE_SHIFT | stamp;
}

static __always_inline __u32 slot_tag(__u64 word)
{
	return word >> FLOW_TAG_SHIFT;
}

static __always_inline __u32 slot_backend(__u64 word)
{
	return (word >> FLOW_BACKEND_SHIFT) & 0xffff;
}

static __always_inline __u32 slot_state(__u64 word)
{
	return (word >> FLOW_STATE_SHIFT) & (FLOW_STATES - 1);
}

static __always_inline __u32 slot_idle_ticks(__u64 word, __u32 now)
{
	return (now - (__u32)word) & FLOW_STAMP_MASK;
}

/* In dsr and ipip only the client is seen, and a sender could forge both of two
 * packets: so the second one makes a flow acked, with a short timeout, and
 * payload makes it established.
 */
static __always_inline __u32 slot_next_state(__u32 state, const struct packet *p)
{
	if (p->tcp_flags & (TCP_FIN | TCP_RST))
		return FLOW_CLOSING;
	if (p->tcp_flags & TCP_SYN || state == FLOW_CLOSING)
		return state;
	if (p->has_payload)
		return FLOW_ESTABLISHED;
	return state == FLOW_EMBRYONIC ? FLOW_ACKED : state;
}

#endif
