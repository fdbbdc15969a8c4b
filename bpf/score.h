/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How busy a backend is, for the schedulers that compare: the lower the better. */
#ifndef STEELYARD_SCORE_H
#define STEELYARD_SCORE_H

#include "maps.h"
#include "mask.h"

#define SCORE_WORST (~0ULL >> 1)
#define NO_WEIGHT 0xffffffff /* the inverse weight of a backend that gets nothing */

/* How much of a connection an embryonic flow is, in 2^32ths.  Anybody can open such flows, with
 * senders that do not exist, so those of a backend count as no more than EMBRYONIC_FROM and a
 * part of its others: so many handshakes are under way where connections are short or clients
 * far away.  One share for all that are compared, that of the first: each flow more still
 * counts for something, so a burst of new ones does not all go to one backend, and where a
 * flood went by chance counts for next to nothing.
 */
#define EMBRYONIC_FROM 16
#define EMBRYONIC_PART_LOG 3
#define EMBRYONIC_ONE (1ULL << 32)
static __always_inline __u64 score_share(const struct backend_load *load)
{
	__u64 embryonic = not_negative((__s64)load->embryonic + load->embryonic_fix);
	__s64 others = (__s64)load->open + load->open_fix - (__s64)embryonic;
	__u64 most = EMBRYONIC_FROM + (not_negative(others) >> EMBRYONIC_PART_LOG);

	return mask_choose(mask_less(most, embryonic), (most << 32) / (embryonic | 1),
			   EMBRYONIC_ONE);
}

/* Open connections, with embryonic ones by their share; or so many more than there were when
 * `open` and `embryonic` were reported.
 */
static __always_inline __u64 score_since(const struct backend_load *load, __u64 share, __s64 open,
					 __s64 embryonic)
{
	__s64 now = not_negative((__s64)load->embryonic + load->embryonic_fix);
	__s64 others = (__s64)load->open + load->open_fix - now - (open - embryonic);

	return not_negative(others + ((now - embryonic) * (__s64)share >> 32));
}

static __always_inline __u64 score_counted(const struct backend_load *load, __u64 share)
{
	return score_since(load, share, 0, 0);
}

/* Connections by weight. */
static __always_inline __u64 score_connections(const struct backend_load *load, __u64 share)
{
	return (score_counted(load, share) + 1) * load->inverse_weight;
}

/* Exponential with mean 256, from the low 16 bits of a draw's hash (the high ones name the
 * slot of the ring): -ln of a number between 0 and 1.  The
 * logarithm is linear between powers of two, which is within 6 % of a connection.
 */
#define CHANCE_MEAN 171 /* 256 / 1.5, the mean of what is multiplied, in units of 2^15 */
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

/* The load score (abi.h, struct backend_load), in 256ths of a connection times
 * 2^20 / weight.  Of two backends one of which is hot, the other wins.  What was
 * reported counts until it is old, since nobody may be there to take it back; then
 * connections count one each.
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
	work += (not_negative(load->waiting + load->waiting_fix) * load->per_byte) >> 16;
	return ((load->is_hot & counts) << 62) + work * load->inverse_weight;
}

/* The score of a draw: the load, and chance on top.  Draws come by weight, so chance is by
 * the same `scale` for all of a flow: then each of them is as likely to have the least of
 * it, and without load backends get flows by their weights.  The scale is the first drawn
 * backend's, so that a connection's worth of chance is one of a usual backend.
 */
static __always_inline __u64 score_draw(const struct backend_load *load, __u32 now, __u64 share,
					__u64 hash, __u64 *scale)
{
	__u64 none = mask_equal(load->inverse_weight, NO_WEIGHT);

	*scale = mask_choose(mask_equal(*scale, 0) & ~none, load->inverse_weight, *scale);
	return mask_choose(none, SCORE_WORST, score_load(load, now, share) + chance(hash) * *scale);
}

/* So many connections a backend may have whatever the others have: with fewer there is
 * nothing to balance, and a client that comes alone (with a control and a data
 * connection, or with a few at once) must find the server that it has talked to.
 */
#define BOUND_FROM 16

/* Bounded load (Mirrokni, Thorup, Zadimoghaddam: Consistent Hashing with Bounded
 * Loads): would one more connection be more than BOUND_FROM, and more than the backend's
 * share of `bound` / 256 of the mean, rounded up?  All embryonic flows are in the mean, so
 * that a flood has nobody passed over.
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
	with_it = score_counted(load, score_share(load)) + 1;
	return with_it > BOUND_FROM && with_it > (most + mean - 1) / mean;
}

#endif
