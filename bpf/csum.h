/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The Internet checksum and its update after a change (RFC 1071, RFC 1624).  Sums are over 32-bit
 * words as they lie in memory, and folded at the end.
 */
#ifndef STEELYARD_CSUM_H
#define STEELYARD_CSUM_H

#include "wire.h"

static __always_inline __u16 csum_fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* Returns what to add to a sum when `from` becomes `to`. */
static __always_inline __u64 csum_change(__u32 from, __u32 to)
{
	return (__u64)(__u32)~from + to;
}

static __always_inline __u64 csum_change_address(__u8 family, const __be32 *from, const __be32 *to)
{
	__u64 sum = csum_change(from[0], to[0]);

	if (LB_IPV6 && family == 6) {
		sum += csum_change(from[1], to[1]);
		sum += csum_change(from[2], to[2]);
		sum += csum_change(from[3], to[3]);
	}
	return sum;
}

/* Returns the new value of a checksum field, after a change of the bytes that it covers. */
static __always_inline __sum16 csum_update(__sum16 check, __u64 change)
{
	return ~csum_fold((__u16)~check + change);
}

static __always_inline __sum16 ipv4_checksum(const struct ipv4_header *ip)
{
	const __u32 *words = (const __u32 *)ip;
	__u64 sum = 0;

#pragma unroll
	for (int i = 0; i < sizeof(*ip) / 4; i++)
		sum += words[i];
	return ~csum_fold(sum);
}

#endif
