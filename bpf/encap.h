/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* ipip and gue: an outer header that takes the packet to the backend, which removes it.
 *
 * DF is always set, so a path that is too narrow reports this instead of fragmenting.  DSCP and ECN
 * are copied (RFC 6040, normal mode).  The inner packet is forwarded, so its TTL is decremented
 * (RFC 2003, section 3.1); this ends the loop if a backend sends the packet back to us.
 */
#ifndef STEELYARD_ENCAP_H
#define STEELYARD_ENCAP_H

#include "csum.h"
#include "frame.h"
#include "hash.h"
#include "maps.h"
#include "packet.h"

#define OUTER_TTL 64
#define GUE_SPORT_FIRST 0xc000 /* the dynamic ports (RFC 6335): entropy for ECMP and RSS */

/* GUE variant 0, with one word of private data. */
struct gue_header {
	__u8 version_hlen; /* variant:2, control:1, number of words after the first one:5 */
	__u8 l4_proto;
	__be16 flags;
	__be32 mark;
};

#define GUE_VERSION_HLEN 1
#define GUE_MARK 0x5354594c /* another balancer has passed it on: do not pass it on again */

/* Decrements the TTL or hop limit, which must not be 0. */
static __always_inline int ttl_decrement(void *l3, void *data_end, __u8 family)
{
	if (!LB_IPV6 || family == 4) {
		struct ipv4_header *ip = l3;
		__u16 old, new;

		if ((void *)(ip + 1) > data_end)
			return REASON_INTERNAL;
		old = ip->ttl;
		new = old - 1;
		ip->ttl = new;
		ip->check = csum_update(ip->check, csum_change(old, new));
	} else {
		struct ipv6_header *ip = l3;

		if ((void *)(ip + 1) > data_end)
			return REASON_INTERNAL;
		ip->hop_limit--;
	}
	return 0;
}

/* Writes whole words, and sums them as they are written: a load of bytes that were stored in parts
 * has to wait until they have left the store buffer.
 */
static __always_inline void put_ipv4(struct ipv4_header *ip, const struct packet *p,
				     const struct backend *backend, __u8 l4_proto, __u32 len)
{
	__u32 *words = (__u32 *)ip;
	__u32 first = 0x45 | (__u32)p->tos << 8 | (__u32)bswap16(len + sizeof(*ip)) << 16;
	__u32 second = (__u32)be16(IPV4_DF) << 16; /* and id 0 */
	__u32 third = OUTER_TTL | (__u32)l4_proto << 8;
	__be32 saddr = backend->source_addr[0], daddr = backend->addr[0];
	__u64 sum = (__u64)first + second + third + saddr + daddr;

	words[0] = first;
	words[1] = second;
	words[2] = third | (__u32)(__u16)~csum_fold(sum) << 16;
	words[3] = saddr;
	words[4] = daddr;
}

/* The outer header of RFC 2473. */
static __always_inline void put_ipv6(struct ipv6_header *ip, const struct packet *p,
				     const struct backend *backend, __u8 l4_proto, __u32 len)
{
	ip->version_class_label = be32(6U << 28 | (__u32)p->tos << 20);
	ip->payload_len = bswap16(len);
	ip->next_header = l4_proto;
	ip->hop_limit = OUTER_TTL;
	__builtin_memcpy(ip->saddr, backend->source_addr, sizeof(ip->saddr));
	__builtin_memcpy(ip->daddr, backend->addr, sizeof(ip->daddr));
}

/* Returns the sum over the inner packet without reading it: the bytes that its own checksum covers
 * add up to the complement of the pseudo header, which the checksum covers too.  0: no checksum
 * covers all of the packet (a fragment, UDP without checksum or with bytes after it, extension
 * headers).
 */
static __always_inline __u64 inner_sum(void *l3, void *data_end, const struct packet *p)
{
	__u64 sum = 0x1fffeULL; /* zero in ones' complement, but not the 0 that means "none" */
	struct udp_header *udp = l3 + bounded(p->l4_off, 60);
	bool is_error = p->quote_off;
	__u8 l4_proto = is_error ? L4_ICMPV6 : p->l4_proto;

	if (p->is_fragment || (!is_error && p->payload_off + p->payload_len != p->len))
		return 0;
	if ((void *)(udp + 1) > data_end || (l4_proto == L4_UDP && !udp->check))
		return 0;
	if (p->family == 4) {
		if (is_error)
			return sum; /* an ICMP checksum covers no pseudo header */
		sum += (__u64)(__u32)~p->saddr[0] + (__u32)~p->daddr[0];
		sum += (__u32)~be32(p->l4_proto) + (__u64)(__u32)~be32(p->len - p->l4_off);
	} else {
		struct ipv6_header *ip = l3;
		__u32 *words = l3;

		if ((void *)(ip + 1) > data_end || p->l4_off != sizeof(*ip))
			return 0;
		sum += (__u64)words[0] + words[1];
		sum += (__u32)~be32(l4_proto) + (__u64)(__u32)~be32(p->len - p->l4_off);
	}
	return sum;
}

/* Returns the length of the headers between the outer IP header and the packet. */
static __always_inline __u32 udp_len_of(__u8 forward)
{
	if (LB_SYNC && forward == FORWARD_PEER)
		return sizeof(struct udp_header) + sizeof(struct gue_header);
	return LB_GUE && forward == FORWARD_GUE ? sizeof(struct udp_header) : 0;
}

/* Writes the GUE header of a packet that is passed on to a peer. */
static __always_inline void put_mark(struct udp_header *udp, void *data_end, __u8 family)
{
	struct gue_header *gue = (void *)(udp + 1);

	if ((void *)(gue + 1) > data_end)
		return;
	gue->version_hlen = GUE_VERSION_HLEN;
	gue->l4_proto = family == 4 ? L4_IPIP : L4_IPV6;
	gue->flags = 0;
	gue->mark = be32(GUE_MARK);
}

static __always_inline void put_gue(struct udp_header *udp, void *data_end, const struct packet *p,
				    const struct backend *backend)
{
	bool is_peer = LB_SYNC && backend->forward == FORWARD_PEER;
	/* Only the first fragment of a datagram has ports, and all fragments must take the same
	 * path.
	 */
	__u64 entropy = tuple_hash(p->family, p->saddr,
				   p->is_fragment ? 0 : ports_word(p->sport, p->dport), PICK_KEY,
				   PICK_MUL0, PICK_MUL1);
	__u64 sum;

	udp->sport = bswap16(GUE_SPORT_FIRST | (entropy >> 50));
	udp->dport = be16(LB_GUE_PORT);
	udp->len = bswap16(p->len + udp_len_of(backend->forward));
	udp->check = 0;
	if (is_peer) /* peers do not check the checksum */
		return put_mark(udp, data_end, p->family);
	if (backend->family == 4)
		return; /* optional, and the inner packet has its own */
	/* RFC 6935 allows zero, but most receivers do not. */
	sum = inner_sum(udp + 1, data_end, p);
	if (!sum)
		return;
#pragma unroll
	for (int i = 0; i < 4; i++)
		sum += (__u64)backend->source_addr[i] + backend->addr[i];
	sum += be32(p->len + sizeof(*udp)) + (__u64)be32(L4_UDP);
	sum += ((__u32 *)udp)[0] + (__u64)((__u32 *)udp)[1];
	udp->check = ~csum_fold(sum);
	if (!udp->check)
		udp->check = 0xffff;
}

static __always_inline __u64 encap_flags(const struct backend *backend, bool is_gue)
{
	__u64 flags = backend->family == 4 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 :
					     BPF_F_ADJ_ROOM_ENCAP_L3_IPV6;

	return is_gue ? flags | BPF_F_ADJ_ROOM_ENCAP_L4_UDP : flags;
}

/* Is the packet too big for the path, with `outer` bytes more?  mtu 0 is unknown.  Of a
 * super-frame, the kernel makes segments that fit.
 */
static __always_inline bool is_too_big(const CTX *ctx, const struct packet *p,
				       const struct backend *backend, __u32 outer)
{
	return backend->mtu && p->len + outer > backend->mtu && !ctx_is_super(ctx);
}

static __always_inline int encapsulate(CTX *ctx, struct packet *p, const struct backend *backend,
				       const struct hop *hop)
{
	__u32 udp_len = udp_len_of(backend->forward);
	bool is_gue = udp_len;
	__u32 ip_len = backend->family == 4 ? sizeof(struct ipv4_header) :
					      sizeof(struct ipv6_header);
	__u32 outer = ip_len + udp_len;
	__u8 l4_proto = is_gue ? L4_UDP : p->family == 4 ? L4_IPIP : L4_IPV6;
	void *l3, *data_end;
	int reason;

	if (p->ttl <= 1)
		return REASON_TTL_EXCEEDED;
	if (is_too_big(ctx, p, backend, outer))
		return REASON_TOO_BIG;
	reason = frame_build(ctx, p, hop, outer, encap_flags(backend, is_gue),
			     eth_proto_of(backend->family));
	if (reason)
		return reason;
	l3 = packet_l3(ctx_data(ctx), p);
	data_end = ctx_end(ctx);
	/* Check no more than the minimum length: the last fragment can have a single byte of
	 * payload.
	 */
	if (backend->family == 4) {
		if (l3 + sizeof(struct ipv4_header) + sizeof(struct udp_header) > data_end)
			return REASON_INTERNAL;
		put_ipv4(l3, p, backend, l4_proto, p->len + outer - ip_len);
		l3 += sizeof(struct ipv4_header);
	} else {
		if (l3 + sizeof(struct ipv6_header) + sizeof(struct udp_header) > data_end)
			return REASON_INTERNAL;
		put_ipv6(l3, p, backend, l4_proto, p->len + outer - ip_len);
		l3 += sizeof(struct ipv6_header);
	}
	reason = ttl_decrement(l3 + udp_len, data_end, p->family);
	if (is_gue && !reason)
		put_gue(l3, data_end, p, backend);
	return reason;
}

#endif
