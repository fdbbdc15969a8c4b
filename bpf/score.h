/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How busy a backend is, for the schedulers that compare backends: lower is better. */
#ifndef STEELYARD_SCORE_H
#define STEELYARD_SCORE_H

#include "maps.h"
#include "mask.h"

#define SCORE_WORST (~0ULL >> 1)
#define NO_WEIGHT 0xffffffff /* the inverse weight of a backend with weight 0 */

/* How much of a connection an embryonic flow counts as, in units of 2^-32.  Anybody can open such
 * flows with forged sources, so those of a backend count together as at most EMBRYONIC_FROM plus a
 * fraction of its other flows; about that many handshakes are in progress where connections are
 * short or clients far away.  One share, that of the first backend, is used for all that are
 * compared.  So each additional flow still counts for something, and a burst of new flows does not
 * all go to one backend; and how a flood happens to be spread counts for next to nothing.
 */
#define EMBRYONIC_FROM 16
#define EMBRYONIC_PART_LOG 3
#define EMBRYONIC_ONE (1ULL << 32)
static __always_inline __u64 score_share(const struct backend_load *load)
{
	__u64 embryonic = at_least_zero((__s64)load->embryonic + load->embryonic_fix);
	__s64 others = (__s64)load->open + load->open_fix - (__s64)embryonic;
	__u64 most = EMBRYONIC_FROM + (at_least_zero(others) >> EMBRYONIC_PART_LOG);

	return mask_choose(mask_less(most, embryonic), (most << 32) / (embryonic | 1),
			   EMBRYONIC_ONE);
}

/* Returns the open connections, with embryonic ones counted by their share; or how many more these
 * are than when `open` and `embryonic` were reported.
 */
static __always_inline __u64 score_since(const struct backend_load *load, __u64 share, __s64 open,
					 __s64 embryonic)
{
	__s64 now = at_least_zero((__s64)load->embryonic + load->embryonic_fix);
	__s64 others = (__s64)load->open + load->open_fix - now - (open - embryonic);

	return at_least_zero(others + ((now - embryonic) * (__s64)share >> 32));
}

static __always_inline __u64 score_counted(const struct backend_load *load, __u64 share)
{
	return score_since(load, share, 0, 0);
}

/* Returns the connections, with one more, divided by the weight. */
static __always_inline __u64 score_connections(const struct backend_load *load, __u64 share)
{
	return (score_counted(load, share) + 1) * load->inverse_weight;
}

/* Returns an exponential random number with mean 256: -ln of a number between 0 and 1, from the low
 * 16 bits of a draw's hash (the high ones select the slot of the ring).  The logarithm is linear
 * between powers of two, which is within 6 % of a connection.
 */
#define CHANCE_MEAN 171 /* 256 / 1.5, the mean of the value that is multiplied, in units of 2^15 */
static __always_inline __u64 chance(__u64 hash)
{
	__u64 x = (hash & 0xffff) | 1, zeros = 0;

#pragma unroll
	for (__u32 step = 8; step; step /= 2) {
		__u64 shift = mask_less(x, 1 << (16 - step)) & step;

		x <<= shift;
		zeros += shift;
	}
	return (((zeros + 2) << 15) - x) * CHANCE_MEAN >> 15;
}

/* The load score (abi.h, struct backend_load), in 256ths of a connection times 2^20 / weight.  A
 * backend that is not hot always beats a hot one.  A report counts only until it is old, since
 * nobody may be left to withdraw it; then each connection counts as one.
 */
static __always_inline __u64 score_load(const struct backend_load *load, __u32 now, __u64 share)
{
	__s64 left = (__s32)(load->report_until - now);
	__u64 counts, kappa, work;

	counts = mask_less(-left, 0);
	work = load->queue & counts;
	kappa = mask_choose(counts, load->kappa, 256);
	work += kappa * score_since(load, share, load->report_open & counts,
				    load->report_embryonic & counts);
	work += (at_least_zero(load->waiting + load->waiting_fix) * load->per_byte) >> 16;
	return ((load->is_hot & counts) << 62) + work * load->inverse_weight;
}

/* The score of a draw: the load plus a random amount.  Draws are made by weight, so the same
 * `scale` is used for the random amounts of all draws of a flow: then each draw is equally likely
 * to have the smallest one, and without load, backends get flows by their weights.  The scale is
 * that of the first drawn backend, so that the amount is that of one connection on a usual backend.
 */
static __always_inline __u64 score_draw(const struct backend_load *load, __u32 now, __u64 share,
					__u64 hash, __u64 *scale)
{
	__u64 none = mask_equal(load->inverse_weight, NO_WEIGHT);

	*scale = mask_choose(mask_equal(*scale, 0) & ~none, load->inverse_weight, *scale);
	return mask_choose(none, SCORE_WORST, score_load(load, now, share) + chance(hash) * *scale);
}

/* A backend may have this many connections whatever the others have.  With fewer there is nothing
 * to balance, and a single client (with a control and a data connection, or a few at once) must
 * stay on the server that it has talked to.
 */
#define BOUND_FROM 16

/* Bounded load (Mirrokni, Thorup, Zadimoghaddam: Consistent Hashing with Bounded Loads): would one
 * more connection exceed both BOUND_FROM and the backend's share of `bound` / 256 of the mean,
 * rounded up?  The mean includes all embryonic flows, so a flood does not make us pass backends
 * over.
 */
static __always_inline bool score_is_over(__u32 service_id, __u32 id, __u32 bound)
{
	struct service_load *all = service_load.lookup(&service_id);
	struct backend_load *load = backend_load.lookup(&id);
	__u64 mean, most, with_it;

	if (!all || !load || !bound || !all->weight)
		return false;
	mean = 256 * all->weight;
	most = bound * (at_least_zero(all->open + all->open_fix) + 1) * load->weight;
	with_it = score_counted(load, score_share(load)) + 1;
	return with_it > BOUND_FROM && with_it > (most + mean - 1) / mean;
}

#endif
