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

/* Has the agent ended the flow?  Then its slot is closing and names no backend, and packets of
 * either end are answered with RST.
 */
static __always_inline bool slot_is_reset(__u64 word)
{
	return slot_state(word) && !slot_backend(word);
}

/* Returns the state without the awaiting bit. */
static __always_inline __u32 slot_base(__u32 state)
{
	return state >= FLOW_ESTABLISHED_AWAITING ? state & ~FLOW_AWAITING : state;
}

static __always_inline bool slot_awaits(__u32 state)
{
	return state >= FLOW_ESTABLISHED_AWAITING;
}

/* An open flow counts as a connection of its backend. */
static __always_inline bool slot_is_open(__u32 state)
{
	return state != FLOW_FREE && slot_base(state) != FLOW_CLOSING;
}

/* Ticks after which a closing flow gives way to a new one: both ends have closed, or one has and
 * nothing follows, so the flow only serves late packets.
 */
#define CLOSING_TICKS 2

static __always_inline bool slot_gives_way(__u64 word, __u32 now)
{
	return slot_state(word) == FLOW_CLOSING && slot_idle_ticks(word, now) >= CLOSING_TICKS;
}

/* Returns the next state after a packet of the client.  dsr and the tunnels see nothing else, and a
 * sender could forge two packets as well as one.  So the second one only makes a flow acked, with a
 * short timeout, and payload makes it established.  In nat and fullnat, nothing counts before the
 * client has seen what the server sent (`is_proven`).
 */
static __always_inline __u32 slot_next_state(__u32 base, const struct packet *p, bool is_proven)
{
	if (base == FLOW_EMBRYONIC && !is_proven)
		return base;
	if (p->tcp_flags & (TCP_FIN | TCP_RST))
		return FLOW_CLOSING;
	if (p->tcp_flags & TCP_SYN || base == FLOW_CLOSING)
		return base;
	if (p->payload_len || p->l4_proto != L4_TCP)
		return FLOW_ESTABLISHED;
	return base == FLOW_EMBRYONIC ? FLOW_ACKED : base;
}

/* Returns the next state after a packet of the backend (nat, fullnat).  A SYN-ACK, a RST or a
 * datagram can be the answer to a forged packet and proves nothing; what follows the client's
 * acknowledgement does.
 */
static __always_inline __u32 slot_replied_state(__u32 base, const struct packet *p)
{
	if (p->l4_proto != L4_TCP)
		return base == FLOW_EMBRYONIC ? FLOW_ACKED : base;
	if (base == FLOW_EMBRYONIC)
		return base;
	if (p->tcp_flags & (TCP_FIN | TCP_RST))
		return FLOW_CLOSING;
	return base == FLOW_ACKED ? FLOW_ESTABLISHED : base;
}

#endif
