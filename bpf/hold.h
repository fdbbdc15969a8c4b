/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* New flows are held back for a moment while another balancer takes the VIPs: it
 * would not know them.  Their first packets are dropped, and clients send them again.
 */
#ifndef STEELYARD_HOLD_H
#define STEELYARD_HOLD_H

#include "maps.h"

/* Whether it is before the agent's deadline.  The hold ends by itself: an agent that
 * dies or is stopped in it leaves nothing to undo.  A deadline that is further away
 * than any can be is an error, and holds nobody.
 */
static __always_inline bool hold_is_on(void)
{
	__u32 index = 0;
	struct settings *row = settings.lookup(&index);
	__u64 until = row ? row->held_until : 0;

	/* The clock is not looked at without need: it costs as much as the rest of a SYN. */
	return until && until - bpf_ktime_get_ns() - 1 < HOLD_MAX_NS;
}

#endif
