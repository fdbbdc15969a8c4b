/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Can an address be ours at all?  One bit tells for most addresses that are not, so that their
 * packets do not pay for a lookup in each table.  agent/dataplane/addressfilter.py mirrors the
 * hash.
 */
#ifndef STEELYARD_FILTER_H
#define STEELYARD_FILTER_H

#include "maps.h"
#include "packet.h"

static __always_inline __u32 filter_hash(__u8 family, const __be32 *addr)
{
	__u32 hash = addr[0] * FILTER_MUL0;

	if (LB_IPV6 && family == 6)
		hash += addr[1] * FILTER_MUL1 + addr[2] * FILTER_MUL2 + addr[3] * FILTER_MUL3;
	return hash >> 16;
}

static __always_inline bool filter_bit(const __u64 *words, __u32 bit)
{
	return words[(bit >> 6) & (FILTER_WORDS - 1)] >> (bit & 63) & 1;
}

/* Can the address be a VIP, a fullnat source, or a nat backend? */
static __always_inline bool filter_has(const struct address_filter *filter, __u8 family,
				       const __be32 *addr)
{
	return filter_bit(filter->exact, filter_hash(family, addr));
}

/* Can the address be in a prefix VIP? */
static __always_inline bool filter_has_prefix(const struct address_filter *filter,
					      const __be32 *addr)
{
	return filter_bit(filter->prefix, bswap16(addr[0] & 0xffff));
}

#endif
