/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* SipHash-1-3 (Aumasson, Bernstein 2012) of a few words, for numbers that other hosts see and must
 * not be able to predict.  The hashes of hash.h are not strong enough for that.
 */
#ifndef STEELYARD_SIPHASH_H
#define STEELYARD_SIPHASH_H

#include <linux/types.h>

struct sip {
	__u64 v0, v1, v2, v3;
};

static __always_inline __u64 rotated(__u64 x, int bits)
{
	return x << bits | x >> (64 - bits);
}

static __always_inline void sip_round(struct sip *s)
{
	s->v0 += s->v1;
	s->v1 = rotated(s->v1, 13) ^ s->v0;
	s->v0 = rotated(s->v0, 32);
	s->v2 += s->v3;
	s->v3 = rotated(s->v3, 16) ^ s->v2;
	s->v0 += s->v3;
	s->v3 = rotated(s->v3, 21) ^ s->v0;
	s->v2 += s->v1;
	s->v1 = rotated(s->v1, 17) ^ s->v2;
	s->v2 = rotated(s->v2, 32);
}

static __always_inline void sip_word(struct sip *s, __u64 word)
{
	s->v3 ^= word;
	sip_round(s);
	s->v0 ^= word;
}

static __always_inline struct sip sip_begin(__u64 key0, __u64 key1)
{
	struct sip s = { key0 ^ 0x736f6d6570736575ULL, key1 ^ 0x646f72616e646f6dULL,
			 key0 ^ 0x6c7967656e657261ULL, key1 ^ 0x7465646279746573ULL };

	return s;
}

/* Finishes the hash; `bytes` is the length of the message. */
static __always_inline __u64 sip_end(struct sip *s, __u64 bytes)
{
	sip_word(s, bytes << 56);
	s->v2 ^= 0xff;
	sip_round(s);
	sip_round(s);
	sip_round(s);
	return s->v0 ^ s->v1 ^ s->v2 ^ s->v3;
}

#endif
