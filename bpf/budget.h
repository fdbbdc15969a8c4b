/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A budget for replies to hosts that we know nothing of, so that nobody can flood a third party
 * through us by forging its address.  Virtual scheduling (ITU-T I.371, annex A), with a burst of
 * one second's worth.  CPUs do not wait for each other: two that look at the same moment may both
 * reply.
 */
#ifndef STEELYARD_BUDGET_H
#define STEELYARD_BUDGET_H

#include "hash.h"
#include "maps.h"

#define BUDGET_SECOND 1000000000ULL
/* Per second.  Linux sends 1,000 ICMP messages (icmp_msgs_per_sec), and RSTs without limit. */
#define BUDGET_OF_ALL 10000
#define BUDGET_OF_SOURCE 100

static __always_inline bool budget_is_spent(__u64 due, __u64 now, __u64 interval)
{
	return (__s64)(due - now) > (__s64)(BUDGET_SECOND - interval);
}

static __always_inline __u64 budget_next(__u64 due, __u64 now, __u64 interval)
{
	return (due > now ? due : now) + interval;
}

/* The secret hash of a source.  Of an IPv6 address, the first 64 bits are one source.  Two steps of
 * the hash are not enough for consecutive addresses: with one key in forty, the 200 hosts of a
 * network shared 150 budgets or fewer, with the worst key only 6.
 */
static __always_inline __u64 source_hash_secret(const struct packet *p)
{
	__u64 word = (__u64)p->saddr[0] << 32 | (p->family == 6 ? p->saddr[1] : 0), hash;

	hash = mix(mix(mix(word ^ LB_FLOW_KEY, LB_FLOW_MUL0), LB_FLOW_MUL1), LB_FLOW_MUL0);
	/* The secrets are put in when the program is loaded, so the compiler must not shorten them
	 * to the bits that matter for what follows.
	 */
	asm volatile("" : "+r"(hash));
	return hash;
}

static __always_inline __u32 budget_source(const struct packet *p)
{
	return 1 + (source_hash_secret(p) >> 32) % BUDGET_SOURCES;
}

/* May one more reply be sent to the packet's source?  If so, it is counted. */
static __always_inline bool budget_allows(const struct packet *p)
{
	__u32 index = budget_source(p), zero = 0;
	__u64 now = bpf_ktime_get_ns(), *source, *all;

	source = budget_times.lookup(&index);
	all = budget_times.lookup(&zero);
	if (!source || !all || budget_is_spent(*source, now, BUDGET_SECOND / BUDGET_OF_SOURCE) ||
	    budget_is_spent(*all, now, BUDGET_SECOND / BUDGET_OF_ALL))
		return false;
	*source = budget_next(*source, now, BUDGET_SECOND / BUDGET_OF_SOURCE);
	*all = budget_next(*all, now, BUDGET_SECOND / BUDGET_OF_ALL);
	return true;
}

#endif
