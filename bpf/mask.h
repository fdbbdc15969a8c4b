/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Comparisons without a branch.  BPF has no such instructions, and the verifier follows both paths
 * of a branch, in each round of a loop; in long loops that is too much.  The empty asm keeps the
 * compiler from turning these back into branches.
 */
#ifndef STEELYARD_MASK_H
#define STEELYARD_MASK_H

#include <linux/types.h>

/* All ones if a < b, else 0; both below 2^63. */
static __always_inline __u64 mask_less(__u64 a, __u64 b)
{
	__u64 difference = a - b;

	asm volatile("" : "+r"(difference));
	return (__s64)difference >> 63;
}

/* All ones if a == b, else 0. */
static __always_inline __u64 mask_equal(__u64 a, __u64 b)
{
	__u64 difference = a ^ b;

	difference |= -difference; /* its highest bit: whether they differ */
	asm volatile("" : "+r"(difference));
	return ~(__u64)((__s64)difference >> 63);
}

/* Hides from the compiler where a mask comes from: for a mask that is used for several choices, it
 * would make a branch of each.
 */
static __always_inline __u64 mask_hidden(__u64 mask)
{
	asm volatile("" : "+r"(mask));
	return mask;
}

static __always_inline __u64 mask_choose(__u64 mask, __u64 yes, __u64 no)
{
	return no ^ ((no ^ yes) & mask);
}

static __always_inline __u64 at_least_zero(__s64 x)
{
	__s64 sign = x >> 63;

	asm volatile("" : "+r"(sign));
	return x & ~sign;
}

#endif
