/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Counters.  Each CPU has its own rows, so no atomics are needed; the values that the schedulers
 * compare are shared by all CPUs, and atomic.  A lookup that fails never changes a verdict.
 */
#ifndef STEELYARD_COUNT_H
#define STEELYARD_COUNT_H

#include "maps.h"

/* Does any scheduler compare how much work backends have? */
#define COUNTS_LOADS (LB_LEAST_CONN || LB_LEAST_LOAD || LB_SOURCE)

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

static __always_inline void count_reason(__u32 service, __u32 reason, bool replied)
{
	struct service_counters *c = service_counters_of(service);

	if (!c || reason >= REASON_COUNT)
		return;
	c->reason[reason]++;
	c->replied += replied;
}

static __always_inline void count_not_recorded(__u32 service)
{
	struct service_counters *c = service_counters_of(service);

	if (c)
		c->not_recorded++;
}

static __always_inline void count_cookie(__u32 service)
{
	struct service_counters *c = service_counters_of(service);

	if (c)
		c->cookies++;
}

static __always_inline void count_not_replied(__u32 service)
{
	struct service_counters *c = service_counters_of(service);

	if (c)
		c->not_replied++;
}

static __always_inline struct sync_counters *sync_counters_here(void)
{
	__u32 index = bpf_get_smp_processor_id();

	return sync_count.lookup(&index);
}

/* Adds to a backend's open flows, and to the embryonic ones among them; -1 subtracts one. */
static __always_inline void load_add(const struct backend *backend, __u32 id, __s32 open,
				     __s32 embryonic)
{
	struct backend_load *load;
	struct service_load *all;
	__u32 service;

	if (!COUNTS_LOADS || !(backend->flags & BACKEND_F_LOAD))
		return;
	load = backend_load.lookup(&id);
	if (load) {
		__sync_fetch_and_add(&load->open, open);
		__sync_fetch_and_add(&load->embryonic, embryonic);
	}
	if (!LB_SOURCE)
		return;
	service = backend->service;
	all = service_load.lookup(&service);
	if (all)
		__sync_fetch_and_add(&all->open, (__s64)open);
}

static __always_inline void count_opened(const struct backend *backend, __u32 id, __s32 embryonic)
{
	struct backend_counters *c = backend_counters_of(id);

	if (c)
		c->opened++;
	load_add(backend, id, 1, embryonic);
}

/* Counts a flow that has stopped being open, or embryonic, or both (1 or 0 each). */
static __always_inline void count_left(__u32 id, __u32 open, __u32 embryonic)
{
	struct backend_counters *c = backend_counters_of(id);
	struct backend *backend = backends.lookup(&id);

	if (c)
		c->closed += open;
	if (backend)
		load_add(backend, id, -(__s32)open, -(__s32)embryonic);
}

#endif
