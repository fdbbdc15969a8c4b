/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* SYN cookies (Bernstein 1996; RFC 4987, section 3.6) that one host makes and another one accepts:
 * a balancer answers a SYN, and the server makes the connection when the ACK comes back
 * (companion.c).  The sequence number of the SYN-ACK holds all that the connection needs to know of
 * the SYN, so nothing is stored for clients that do not exist.
 *
 *   31..8  hash, under a key that balancers and servers share, of the client and of all below
 *   7      the lowest bit of the time, in epochs of 69 seconds
 *   6..5   MSS: one of four per family, rounded down
 *   4      the client supports selective acknowledgements
 *   3..0   the client's window scale; 15: none
 *
 * Whether the client uses timestamps shows in the ACK itself.  The destination address is not in
 * the hash: the cookie only shows that its sender exists, whatever it connects to.
 */
#ifndef STEELYARD_COOKIE_H
#define STEELYARD_COOKIE_H

#include "abi.h"
#include "siphash.h"
#include "wire.h"

#define COOKIE_EPOCH_LOG 36 /* nanoseconds */
/* How far the clock of the host that makes a cookie may be ahead of the other host's. */
#define COOKIE_AHEAD_NS 8000000000ULL
#define COOKIE_SACK 0x10
#define COOKIE_NO_SCALE 15
#define COOKIE_SCALE_MAX 14 /* RFC 7323, section 2.3 */
#define COOKIE_HASH 0xffffff00U
/* The host that makes a cookie and the one that accepts it must use the same window scale. */
#define COOKIE_OUR_SCALE 7

#define TCP_OPTION_END 0
#define TCP_OPTION_NOP 1
#define TCP_OPTION_MSS 2
#define TCP_OPTION_SCALE 3
#define TCP_OPTION_SACK 4
#define TCP_OPTION_TIMESTAMPS 8

/* The same values as in Linux (net/ipv4/syncookies.c, net/ipv6/syncookies.c). */
static __always_inline __u32 cookie_mss(__u8 family, __u32 index)
{
	if (family == 4)
		return index == 3 ? 1460 : index == 2 ? 1440 : index == 1 ? 1300 : 536;
	return index == 3 ? 8940 : index == 2 ? 1440 : index == 1 ? 1420 : 1220;
}

static __always_inline __u32 cookie_hash(const __u64 *key, const __be32 *saddr, __be16 sport,
					 __be16 dport, __u32 isn, __u64 epoch, __u32 bits)
{
	struct sip s = sip_begin(key[0], key[1]);

	sip_word(&s, (__u64)saddr[1] << 32 | saddr[0]);
	sip_word(&s, (__u64)saddr[3] << 32 | saddr[2]);
	sip_word(&s, (__u64)isn << 32 | (__u32)dport << 16 | sport);
	sip_word(&s, epoch << 8 | (bits & 0xff));
	return (sip_end(&s, 32) & COOKIE_HASH) | (bits & 0xff);
}

/* Returns the epoch in which a cookie was made, by the bit in it. */
static __always_inline __u64 cookie_epoch(__u32 cookie, __u64 wall_ns)
{
	__u64 epoch = wall_ns >> COOKIE_EPOCH_LOG;
	__u64 ahead = (wall_ns + COOKIE_AHEAD_NS) >> COOKIE_EPOCH_LOG;

	if (!((cookie >> 7 ^ epoch) & 1))
		return epoch;
	return ahead != epoch ? ahead : epoch - 1;
}

/* Is it the cookie with which we would have answered a SYN of that initial sequence number? */
static __always_inline bool cookie_is_ours(const struct cookie_secret *secret, const __be32 *saddr,
					   __be16 sport, __be16 dport, __u32 isn, __u32 cookie)
{
	__u64 epoch = cookie_epoch(cookie, bpf_ktime_get_ns() + secret->wall_ns);

	if (!secret->keys)
		return false;
	if (cookie_hash(secret->key, saddr, sport, dport, isn, epoch, cookie) == cookie)
		return true;
	return secret->keys > 1 &&
	       cookie_hash(secret->other, saddr, sport, dport, isn, epoch, cookie) == cookie;
}

#endif
