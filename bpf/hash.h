/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Two hashes of a flow, of the same form.  agent/dataplane/flowhash.py mirrors them.
 *
 * - The flow hash finds a flow's slot.  Its multipliers are secret and drawn per boot, so that
 *   nobody can aim at a bucket.
 * - The pick hash draws from the ring.  It is the same on every balancer of a group, so that
 *   another balancer picks the same backend.
 *
 * The service, by its salt, stands for VIP and protocol, so only the client's address and the two
 * ports are left to hash.  For IPv4 these are one 64-bit word, of which every step here is a
 * bijection.
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

/* Hashes an IPv6 address to 64 bits; the order of the steps makes every word count. */
static __always_inline __u64 fold6(const __be32 *addr, __u64 key, __u64 mul0, __u64 mul1)
{
	__u64 high = (__u64)addr[3] << 32 | addr[2];

	return mix(mix(high ^ key, mul1) ^ addr[1], mul0);
}

static __always_inline __u64 tuple_hash(__u8 family, const __be32 *saddr, __u32 ports, __u64 key,
					__u64 mul0, __u64 mul1)
{
	__u64 word = (__u64)saddr[0] << 32 | ports;

	if (LB_IPV6 && family == 6)
		word ^= fold6(saddr, key, mul0, mul1);
	return mix(mix(word ^ key, mul0), mul1);
}

static __always_inline __u32 ports_word(__be16 sport, __be16 dport)
{
	return (__u32)sport << 16 | dport;
}

/* Returns the key for the flow hash.  Below a prefix VIP, the VIP's address is part of the flow. */
static __always_inline __u64 flow_key(const struct packet *p, const struct service *service)
{
	__u64 key = LB_FLOW_KEY ^ (__u64)service->flow_salt * PICK_MUL0;

	if (LB_PREFIX && service->flags & SERVICE_F_PREFIX) {
		key ^= mix(p->daddr[0], PICK_MUL1);
		if (LB_IPV6 && p->family == 6)
			key ^= fold6(p->daddr, PICK_KEY, PICK_MUL0, PICK_MUL1);
	}
	return key;
}

static __always_inline __u64 flow_hash(const struct packet *p, const struct service *service)
{
	return tuple_hash(p->family, p->saddr, ports_word(p->sport, p->dport), flow_key(p, service),
			  LB_FLOW_MUL0, LB_FLOW_MUL1);
}

static __always_inline __u64 pick_hash(const struct packet *p, __u64 seed)
{
	return tuple_hash(p->family, p->saddr, ports_word(p->sport, p->dport), PICK_KEY ^ seed,
			  PICK_MUL0, PICK_MUL1);
}

/* Hashes only the first `bits` of the client's address. */
static __always_inline __u64 source_hash(const struct packet *p, __u32 bits, __u64 seed)
{
	__be32 prefix[4];

#pragma unroll
	for (int i = 0; i < 4; i++) {
		__u32 left = bits > 32 * i ? bits - 32 * i : 0;
		__u32 mask = left >= 32 ? 0xffffffff : ~(0xffffffff >> left);

		prefix[i] = p->saddr[i] & be32(mask);
	}
	return tuple_hash(p->family, prefix, 0, PICK_KEY ^ seed, PICK_MUL0, PICK_MUL1);
}

/* Hashes the whole of the client's address, the same for every service. */
static __always_inline __u32 client_hash(const struct packet *p)
{
	return tuple_hash(p->family, p->saddr, 0, PICK_KEY, PICK_MUL0, PICK_MUL1) >> 32;
}

static __always_inline __u64 pick_again(__u64 hash)
{
	return mix(hash + PICK_KEY, PICK_MUL0);
}

#endif
