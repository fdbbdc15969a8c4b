/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every map, in packet-path order.  Sizes are -D constants (agent/dataplane/constants.py).
 *
 * All but the services are plain arrays that the agent maps into its memory.
 * They are pinned below LB_PIN and outlive the agent and the program.
 */
#ifndef STEELYARD_MAPS_H
#define STEELYARD_MAPS_H

#include "abi.h"

#define LB_PINNED(name) LB_PIN "/" #name

/* (VIP, port, protocol) -> service.  The agent writes.  Not preallocated: an
 * element of a preallocated hash is reused at once, and a reader on another CPU
 * could see half of the next one.
 */
BPF_TABLE_PINNED7("hash", struct service_key4, struct service, services4, LB_SERVICE_KEYS,
		  LB_PINNED(services4), BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED7("hash", struct service_key6, struct service, services6, LB_SERVICE_KEYS,
		  LB_PINNED(services6), BPF_F_NO_PREALLOC);

/* hash of the flow -> eight slots.  The packet path writes; the agent clears
 * what has expired.
 */
BPF_TABLE_PINNED7("array", u32, struct flow_bucket, flows, LB_FLOW_BUCKETS, LB_PINNED(flows),
		  BPF_F_MMAPABLE);

/* bucket * 8 + way -> what people want to see of it.  The packet path writes. */
BPF_TABLE_PINNED7("array", u32, struct flow_cold, flows_cold, LB_FLOW_BUCKETS *FLOW_WAYS,
		  LB_PINNED(flows_cold), BPF_F_MMAPABLE);

/* line -> 32 backend ids.  The agent writes, only to regions no service names. */
BPF_TABLE_PINNED7("array", u32, struct ring_line, rings, LB_RING_LINES, LB_PINNED(rings),
		  BPF_F_MMAPABLE);

/* id -> backend.  The agent writes. */
BPF_TABLE_PINNED7("array", u32, struct backend, backends, LB_BACKENDS, LB_PINNED(backends),
		  BPF_F_MMAPABLE);

/* cpu * LB_BACKENDS + id -> counters.  The packet path writes its CPU's rows,
 * the agent the row after the last CPU.
 */
BPF_TABLE_PINNED7("array", u32, struct backend_counters, backend_count, LB_BACKENDS *LB_ROWS,
		  LB_PINNED(backend_count), BPF_F_MMAPABLE);

/* cpu * LB_SERVICES + id -> counters, likewise. */
BPF_TABLE_PINNED7("array", u32, struct service_counters, service_count, LB_SERVICES *LB_ROWS,
		  LB_PINNED(service_count), BPF_F_MMAPABLE);

/* One element that the agent writes; the program has it compiled in. */
BPF_TABLE_PINNED7("array", u32, struct settings, settings, 1, LB_PINNED(settings), BPF_F_MMAPABLE);

/* Never read: the compiler describes in BTF only what some map holds, and the
 * loader compares these enums with its own.
 */
struct abi_enums {
	enum reason reason;
	enum forward forward;
	enum scheduler scheduler;
	enum flow_state flow_state;
};
BPF_ARRAY(abi_enums, struct abi_enums, 1);

#endif
