/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* SYN protection: a host that begins a connection first has to show that it is at its address.
 *
 * We answer its SYN with an ACK of something else, as a server does that still has an earlier
 * connection with these ports.  A TCP stack answers that with a RST whose sequence number is the
 * one that we acknowledged (RFC 9293, sections 3.5.1 and 3.10.7.3).  Only a host that has seen our
 * ACK can send that number: it is a secret hash of the source.  From then on the source is
 * verified, and when the client sends its SYN again, it opens a flow as any other.  Nothing is
 * stored for a source that has not answered, so a flood of SYNs fills nothing.
 *
 * The ACK is not a SYN-ACK, and its own sequence number is 0.  Packet filters that track
 * connections know this exchange, let both packets through, and start over at the next SYN
 * (nf_conntrack_proto_tcp.c).  After a SYN-ACK they would expect the server to use its numbers.
 */
#ifndef STEELYARD_CHALLENGE_H
#define STEELYARD_CHALLENGE_H

#include "hash.h"
#include "budget.h"
#include "cookie.h"
#include "maps.h"
#include "mask.h"
#include "packet.h"
#include "scratch.h"
#include "siphash.h"

#define VERIFIED_TICKS (600ULL * LB_HZ >> LB_TICK_SHIFT) /* ten minutes */
#define CHALLENGE_EPOCH_SHIFT 4 /* ticks of four seconds: numbers are valid for 1 to 2 minutes */

/* Hides a secret from the compiler: its value is put in when the program is loaded. */
static __always_inline __u64 secret(__u64 word)
{
	asm volatile("" : "+r"(word));
	return word;
}

/* Hashes the source, the ports, the service and the time. */
static __always_inline __u64 challenge_hash(const struct packet *p, const struct service *service,
					    __u32 epoch)
{
	struct sip s = sip_begin(secret(LB_FLOW_KEY), secret(LB_FLOW_MUL1));

	sip_word(&s, (__u64)p->saddr[1] << 32 | p->saddr[0]);
	sip_word(&s, (__u64)p->saddr[3] << 32 | p->saddr[2]);
	sip_word(&s, (__u64)ports_word(p->sport, p->dport) << 32 | (__u32)service->id << 16 |
			     (epoch & 0xffff));
	return sip_end(&s, 24);
}

static __always_inline __u32 challenge_epoch(void)
{
	return bpf_jiffies64() >> (LB_TICK_SHIFT + CHALLENGE_EPOCH_SHIFT);
}

static __always_inline __u32 verified_tick(void)
{
	return bpf_jiffies64() >> LB_TICK_SHIFT;
}

static __always_inline struct verified_bucket *verified_at(__u64 source)
{
	__u32 index = (source >> 32) % VERIFIED_BUCKETS;

	return verified.lookup(&index);
}

/* All ones if the slot is that source's and has not expired, else 0. */
static __always_inline __u64 slot_verifies(__u64 slot, __u64 source, __u32 now)
{
	__u32 left = (__u32)(slot >> 32) - now;

	return mask_equal((__u32)slot, (__u32)source) & mask_less(left, 1 << 30) &
	       ~mask_equal(slot, 0);
}

static __always_inline bool source_is_verified(const struct packet *p)
{
	__u64 source = source_hash_secret(p), found = 0;
	struct verified_bucket *bucket = verified_at(source);
	__u32 now = verified_tick();

	if (!bucket)
		return false;
#pragma unroll
	for (int way = 0; way < VERIFIED_WAYS; way++)
		found |= slot_verifies(bucket->slot[way], source, now);
	return found;
}

/* Marks the source as verified, in its own slot or in that of the source that expires, or expired,
 * first.
 */
static __always_inline void source_verify(const struct packet *p)
{
	__u64 source = source_hash_secret(p), least = ~0ULL >> 1, chosen = 0;
	struct verified_bucket *bucket = verified_at(source);
	__u32 now = verified_tick();

	if (!bucket)
		return;
#pragma unroll
	for (int way = 0; way < VERIFIED_WAYS; way++) {
		__u64 slot = bucket->slot[way];
		__u64 left = (__u32)(slot >> 32) - now, first;

		/* An expiry in the past wraps to a large number; after this it is the least. */
		left = (left + (1 << 30)) & 0xffffffff;
		left &= ~mask_equal((__u32)slot, (__u32)source) & ~mask_equal(slot, 0);
		first = mask_less(left, least);
		least = mask_choose(first, left, least);
		chosen = mask_choose(first, way, chosen);
	}
	bucket->slot[chosen & (VERIFIED_WAYS - 1)] = (__u64)(__u32)(now + VERIFIED_TICKS) << 32 |
						     (__u32)source;
}

/* A SYN to a service whose new clients are challenged: returns REASON_CHALLENGED, or 0.  This comes
 * before the lookup in the flow table, which in a flood costs more than all of this.
 */
static __always_inline int challenge_syn(const struct packet *p, const struct service *service,
					 struct route *route)
{
	if (p->l4_proto != L4_TCP || (p->tcp_flags & (TCP_SYN | TCP_ACK)) != TCP_SYN ||
	    source_is_verified(p))
		return 0;
	/* The companion on the server expects a cookie right behind the IP header (companion.c). */
	if (LB_COOKIES && service->cookies &&
	    p->l4_off ==
		    (p->family == 4 ? sizeof(struct ipv4_header) : sizeof(struct ipv6_header))) {
		route->tcp_reply = TCP_REPLY_COOKIE;
		route->forward = service->forward;
		return REASON_CHALLENGED;
	}
	route->challenge_ack = challenge_hash(p, service, challenge_epoch());
	route->tcp_reply = TCP_REPLY_CHALLENGE;
	return REASON_CHALLENGED;
}

/* Does the packet answer a SYN cookie?  The first ACK of a connection does, and so do the segments
 * that the client sends with it or, if it got lost, after it.  Any balancer that has the key can
 * tell.
 */
static __always_inline bool challenge_cookie(const struct packet *p, const struct service *service)
{
	struct cookie_secret *secret;
	__u32 zero = 0;

	if (!service->cookies || p->l4_proto != L4_TCP ||
	    (p->tcp_flags & (TCP_SYN | TCP_RST | TCP_ACK)) != TCP_ACK)
		return false;
	secret = cookie_secret.lookup(&zero);
	return secret &&
	       cookie_is_ours(secret, p->saddr, p->sport, p->dport, p->seq - 1, p->ack - 1);
}

/* Any other TCP packet without a flow: from a source that is not verified it opens no flow, and a
 * RST is not forwarded.  Returns REASON_VERIFIED for a RST that answers a challenge,
 * REASON_CHALLENGED for any other RST of an unverified source, else 0.
 */
static __always_inline int challenge_answered(const struct packet *p, const struct service *service,
					      struct route *route)
{
	__u32 epoch = challenge_epoch();

	if (LB_COOKIES && route->answers_cookie) {
		source_verify(p);
		return 0;
	}
	if (p->l4_proto != L4_TCP || source_is_verified(p))
		return 0;
	route->may_open = 0;
	if (!(p->tcp_flags & TCP_RST))
		return 0;
	if (!(mask_equal((__u32)challenge_hash(p, service, epoch), p->seq) |
	      mask_equal((__u32)challenge_hash(p, service, epoch - 1), p->seq)))
		return REASON_CHALLENGED;
	source_verify(p);
	return REASON_VERIFIED;
}

#endif
