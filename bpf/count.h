/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Counting.  Each CPU has its own rows, so no atomics; a lookup that fails
 * never changes a verdict.
 */
#ifndef STEELYARD_COUNT_H
#define STEELYARD_COUNT_H

#include "maps.h"

static __always_inline struct backend_counters *backend_counters_of(__u32 backend)
{
	__u32 index = bpf_get_smp_processor_id() * LB_BACKENDS + backend;

	return backend_count.lookup(&index);
}

static __always_inline struct service_counters *service_counters_of(__u32 service)
{
	__u32 index = bpf_get_smp_processor_id() * LB_SERVICES + service;

	return service_count.lookup(&index);
}

static __always_inline void count_reason(__u32 service, __u32 reason)
{
	struct service_counters *c = service_counters_of(service);

	if (c && reason < REASON_COUNT)
		c->reason[reason]++;
}

static __always_inline void count_not_recorded(__u32 service)
{
	struct service_counters *c = service_counters_of(service);

	if (c)
		c->not_recorded++;
}

static __always_inline void count_closed(__u32 backend)
{
	struct backend_counters *c = backend_counters_of(backend);

	if (c)
		c->closed++;
}

#endif
