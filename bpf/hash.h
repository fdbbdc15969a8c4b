/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Two hashes of a flow, of one shape.  agent/dataplane/flowhash.py mirrors them.
 *
 * - the flow hash finds a flow's slot.  Its multipliers are secret and drawn
 *   per boot, so nobody can aim at a bucket.
 * - the pick hash draws from the ring.  It is the same on every balancer of a
 *   group, so that another one picks the same backend.
 *
 * The service stands for VIP and protocol (its salt), so the client's address
 * and the two ports are all there is left to hash: for IPv4 one 64-bit word, of
 * which every step here is a bijection.
 */
#ifndef STEELYARD_HASH_H
#define STEELYARD_HASH_H

#include "packet.h"

/* Odd constants from the fractional digits of pi and e; any would do. */
#define PICK_KEY 0x243f6a8885a308d3ULL
#define PICK_MUL0 0x9e3779b97f4a7c15ULL
#define PICK_MUL1 0xb7e151628aed2a6bULL

static __always_inline __u64 mix(__u64 x, __u64 multiplier)
{
	x *= multiplier;
	return x ^ (x >> 32);
}

static __always_inline __u64 tuple_hash(const struct packet *p, __u64 key, __u64 mul0, __u64 mul1)
{
	__u64 word = (__u64)p->saddr[0] << 32 | (__u32)p->sport << 16 | p->dport;

	if (LB_IPV6 && p->family == 6) {
		__u64 high = (__u64)p->saddr[3] << 32 | p->saddr[2];

		word ^= mix(mix(high ^ key, mul1) ^ p->saddr[1], mul0);
	}
	return mix(mix(word ^ key, mul0), mul1);
}

static __always_inline __u64 flow_hash(const struct packet *p, __u32 salt)
{
	return tuple_hash(p, LB_FLOW_KEY ^ (__u64)salt * PICK_MUL0, LB_FLOW_MUL0, LB_FLOW_MUL1);
}

static __always_inline __u64 pick_hash(const struct packet *p, __u64 seed)
{
	return tuple_hash(p, PICK_KEY ^ seed, PICK_MUL0, PICK_MUL1);
}

static __always_inline __u64 pick_again(__u64 hash)
{
	return mix(hash + PICK_KEY, PICK_MUL0);
}

#endif
