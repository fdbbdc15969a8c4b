/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* New flows are held back for a moment while another balancer takes over the VIPs, as it would not
 * know them.  Their first packets are dropped, and the clients retransmit them.
 */
#ifndef STEELYARD_HOLD_H
#define STEELYARD_HOLD_H

#include "maps.h"

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

#endif
