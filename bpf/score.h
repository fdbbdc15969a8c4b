/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How busy a backend is, for the schedulers that compare: the lower the better. */
#ifndef STEELYARD_SCORE_H
#define STEELYARD_SCORE_H

#include "maps.h"
#include "mask.h"

#define SCORE_WORST (~0ULL >> 1)

/* Open connections by weight. */
static __always_inline __u64 score_connections(const struct backend_load *load)
{
	return (not_negative(load->open + load->open_fix) + 1) * load->inverse_weight;
}

/* The load score (abi.h, struct backend_load), in 256ths of a connection times
 * 2^20 / weight.  Of two backends one of which is hot, the other wins.  What was
 * reported counts until it is old, since nobody may be there to take it back; then all
 * open connections count one each.
 */
static __always_inline __u64 score_load(const struct backend_load *load, __u32 now)
{
	__s64 left = (__s32)(load->report_until - now);
	__u64 counts, kappa, work;

	counts = mask_less(-left, 0);
	work = 256 + (load->queue & counts);
	kappa = mask_choose(counts, load->kappa, 256);
	work += kappa * not_negative(load->open + load->open_fix - (load->report_open & counts));
	work += (not_negative(load->waiting + load->waiting_fix) * load->per_byte) >> 16;
	return ((load->is_hot & counts) << 62) + work * load->inverse_weight;
}

/* So many open flows a backend may have whatever the others have: with fewer there is
 * nothing to balance, and a client that comes alone (with a control and a data
 * connection, or with a few at once) must find the server that it has talked to.
 */
#define BOUND_FROM 16

/* Bounded load (Mirrokni, Thorup, Zadimoghaddam: Consistent Hashing with Bounded
 * Loads): would one more open flow be more than BOUND_FROM, and more than the backend's
 * share of `bound` / 256 of the mean, rounded up?
 */
static __always_inline bool score_is_over(__u32 service_id, __u32 id, __u32 bound)
{
	struct service_load *all = service_load.lookup(&service_id);
	struct backend_load *load = backend_load.lookup(&id);
	__u64 mean, most, with_it;

	if (!all || !load || !bound || !all->weight)
		return false;
	mean = 256 * all->weight;
	most = bound * (not_negative(all->open + all->open_fix) + 1) * load->weight;
	with_it = not_negative(load->open + load->open_fix) + 1;
	return with_it > BOUND_FROM && with_it > (most + mean - 1) / mean;
}

#endif
