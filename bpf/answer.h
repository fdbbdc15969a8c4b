/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Replies of the balancer itself, made from the packet that it drops: RST, SYN-ACK, ACK as a
 * challenge, ICMP port unreachable, packet too big, time exceeded.  A reply is smaller than its
 * cause or little larger, there is at most one per packet, and hosts that we know nothing of get a
 * limited number (budget.h).
 */
#ifndef STEELYARD_ANSWER_H
#define STEELYARD_ANSWER_H

#include "csum.h"
#include "ctx.h"
#include "forward.h"
#include "guard.h"
#include "budget.h"
#include "mask.h"
#include "packet.h"
#include "scratch.h"
#include "synack.h"

#define QUOTE_MAX 128 /* bytes to quote of the packet; RFC 792 asks for 28, RFC 4443 for more */
#define ANSWER_TTL 64

/* Swaps the MAC addresses, so that the reply goes back to the sender of the frame. */
static __always_inline int answer_macs(CTX *ctx)
{
	struct eth_header *eth = ctx_data(ctx);
	__u8 mac[6];

	if ((void *)(eth + 1) > ctx_end(ctx))
		return REASON_INTERNAL;
	__builtin_memcpy(mac, eth->dest, sizeof(mac));
	__builtin_memcpy(eth->dest, eth->source, sizeof(mac));
	__builtin_memcpy(eth->source, mac, sizeof(mac));
	return 0;
}

/* tc: is the packet's checksum one that the sender's card was to finish?  Then it is finished when
 * the reply goes out, and until then the sum over the addresses is in its place: `partial`.  Only
 * the kernel knows: its helper changes any other checksum, but not such a one.
 */
static __always_inline bool answer_is_unfinished(CTX *ctx, const struct packet *p, __u16 *partial)
{
#if LB_TC
	__u32 at = p->l3_off + p->l4_off +
		   (p->l4_proto == L4_UDP ? __builtin_offsetof(struct udp_header, check) :
					    __builtin_offsetof(struct tcp_header, check));
	__u16 changed;

	if (bpf_skb_load_bytes(ctx, at, partial, sizeof(*partial)) ||
	    bpf_l4_csum_replace(ctx, at, 0, 1, 0) ||
	    bpf_skb_load_bytes(ctx, at, &changed, sizeof(changed)))
		return false;
	if (changed == *partial)
		return true;
	bpf_skb_store_bytes(ctx, at, partial, sizeof(*partial), 0);
#endif
	return false;
}

/* Cuts the IP packet to `len` bytes, or extends it. */
static __always_inline int answer_cut(CTX *ctx, const struct packet *p, __u32 len)
{
#if LB_TC
	return bpf_skb_change_tail(ctx, p->l3_off + len, 0) ? REASON_INTERNAL : 0;
#else
	int more = (int)(p->l3_off + len) - (int)ctx_len(ctx);

	return more && bpf_xdp_adjust_tail(ctx, more) ? REASON_INTERNAL : 0;
#endif
}

/* Makes room for `len` bytes between the link header, tags included, and the IP packet. */
static __always_inline int answer_push(CTX *ctx, const struct packet *p, __u32 len)
{
#if LB_TC
	return bpf_skb_adjust_room(ctx, len, BPF_ADJ_ROOM_MAC, 0) ? REASON_NO_HEADROOM : 0;
#else
	__u8 l2[L3_OFF_MAX];
	__u8 *data = ctx_data(ctx);
	__u32 l2_len = p->l3_off;

	if (data + L3_OFF_MAX > (__u8 *)ctx_end(ctx))
		return REASON_INTERNAL;
	__builtin_memcpy(l2, data, sizeof(l2));
	if (bpf_xdp_adjust_head(ctx, -(int)len))
		return REASON_NO_HEADROOM;
	data = ctx_data(ctx);
	if (data + L3_OFF_MAX > (__u8 *)ctx_end(ctx))
		return REASON_INTERNAL;
	/* What was copied behind a shorter link header is overwritten next. */
	__builtin_memcpy(data, l2, sizeof(l2));
	return l2_len > L3_OFF_MAX ? REASON_INTERNAL : 0;
#endif
}

static __always_inline void answer_ipv4(struct ipv4_header *ip, __be32 saddr, __be32 daddr,
					__u8 l4_proto, __u32 len)
{
	ip->version_ihl = 0x45;
	ip->tos = 0;
	ip->total_len = bswap16(len);
	ip->id = 0;
	ip->frag = be16(IPV4_DF);
	ip->ttl = ANSWER_TTL;
	ip->l4_proto = l4_proto;
	ip->check = 0;
	ip->saddr = saddr;
	ip->daddr = daddr;
	ip->check = ipv4_checksum(ip);
}

static __always_inline void answer_ipv6(struct ipv6_header *ip, const __be32 *saddr,
					const __be32 *daddr, __u8 l4_proto, __u32 len)
{
	ip->version_class_label = be32(6U << 28);
	ip->payload_len = bswap16(len);
	ip->next_header = l4_proto;
	ip->hop_limit = ANSWER_TTL;
	__builtin_memcpy(ip->saddr, saddr, sizeof(ip->saddr));
	__builtin_memcpy(ip->daddr, daddr, sizeof(ip->daddr));
}

static __always_inline __u64 sum_of(const __be32 *words, int count)
{
	__u64 sum = 0;

#pragma unroll
	for (int i = 0; i < count; i++)
		sum += words[i];
	return sum;
}

/* Writes the options of a SYN-ACK; their possible lengths are those of synack.h. */
static __always_inline int answer_options(CTX *ctx, __be32 *to, const struct synack *synack)
{
	void *data_end = ctx_end(ctx);

	if (synack->len >= 4) {
		if ((void *)(to + 1) > data_end)
			return REASON_INTERNAL;
		to[0] = synack->options[0];
	}
	if (synack->len >= 12) {
		if ((void *)(to + 3) > data_end)
			return REASON_INTERNAL;
		to[1] = synack->options[1];
		to[2] = synack->options[2];
	}
	if (synack->len >= 20) {
		if ((void *)(to + 5) > data_end)
			return REASON_INTERNAL;
		to[3] = synack->options[3];
		to[4] = synack->options[4];
	}
	return 0;
}

/* Sends a TCP segment without payload back to the sender.  Its numbers and flags are in `p`, in
 * place of those of the packet that it answers; its options are in `synack`.
 */
static __always_inline int answer_tcp(CTX *ctx, struct packet *p, const struct synack *synack)
{
	__u32 ip_len = sizeof(struct ipv6_header), len = sizeof(struct tcp_header);
	struct tcp_header *tcp;
	__u16 partial = 0;
	bool unfinished = answer_is_unfinished(ctx, p, &partial);
	__u64 addresses, sum;
	void *l3;

	/* Without a branch: the verifier would follow both ways of each. */
	ip_len -= mask_equal(p->family, 4) &
		  (sizeof(struct ipv6_header) - sizeof(struct ipv4_header));
	if (LB_COOKIES)
		len += synack->len;
	if (answer_macs(ctx) || answer_cut(ctx, p, ip_len + len))
		return REASON_INTERNAL;
	l3 = packet_l3(ctx_data(ctx), p);
	if (p->family == 4) {
		tcp = l3 + sizeof(struct ipv4_header);
		if ((void *)(tcp + 1) > ctx_end(ctx))
			return REASON_INTERNAL;
		answer_ipv4(l3, p->daddr[0], p->saddr[0], L4_TCP, sizeof(struct ipv4_header) + len);
	} else {
		tcp = l3 + sizeof(struct ipv6_header);
		if ((void *)(tcp + 1) > ctx_end(ctx))
			return REASON_INTERNAL;
		answer_ipv6(l3, p->daddr, p->saddr, L4_TCP, len);
	}
	tcp->sport = p->dport;
	tcp->dport = p->sport;
	tcp->seq = be32(p->seq);
	tcp->ack = be32(p->ack);
	tcp->offset = len / 4 << 4;
	tcp->flags = p->tcp_flags;
	tcp->window = p->tcp_flags & TCP_SYN ? be16(SYNACK_WINDOW) : 0;
	tcp->check = 0;
	tcp->urgent = 0;
	addresses = sum_of(p->saddr, 4) + sum_of(p->daddr, 4);
	addresses += be32(L4_TCP) + (__u64)be32(len);
	sum = addresses + sum_of((__be32 *)tcp, 5);
	if (LB_COOKIES)
		sum += sum_of(synack->options, 5);
	tcp->check = unfinished ? csum_fold(addresses) : ~csum_fold(sum);
	return LB_COOKIES ? answer_options(ctx, (__be32 *)(tcp + 1), synack) : 0;
}

/* Sets the sequence numbers and flags: of the reset of a connection that does not exist (RFC 9293,
 * section 3.10.7.1), of the challenge (challenge.h), or of the SYN-ACK (synack.h).  The first two
 * without a branch, as above.
 */
static __always_inline void answer_numbers(struct packet *p, const struct route *route, int reason,
					   const struct synack *synack)
{
	__u32 end = p->seq + p->payload_len + (p->tcp_flags & TCP_FIN) / TCP_FIN +
		    (p->tcp_flags & TCP_SYN) / TCP_SYN;
	__u64 has_ack = ~mask_equal(p->tcp_flags & TCP_ACK, 0), challenged = 0;

	if (LB_CHALLENGE)
		challenged = mask_equal(reason, REASON_CHALLENGED);
	if (LB_COOKIES && route->tcp_reply == TCP_REPLY_COOKIE) {
		p->ack = p->seq + 1;
		p->seq = synack->cookie;
		p->tcp_flags = TCP_SYN | TCP_ACK;
		return;
	}
	p->seq = p->ack & has_ack & ~challenged;
	p->ack = mask_choose(challenged, route->challenge_ack, end & ~has_ack);
	p->tcp_flags = mask_choose(challenged, TCP_ACK, TCP_RST | (TCP_ACK & ~has_ack));
}

/* Adds a block of the quote, if `len` includes one of that size. */
#define SUM_BLOCK(size)                                                        \
	do {                                                                   \
		if (len & (size)) {                                            \
			if (from + (size) > data_end)                          \
				return 0;                                      \
			sum += (__u32)bpf_csum_diff(NULL, 0, from, (size), 0); \
			from += (size);                                        \
		}                                                              \
	} while (0)

/* Returns the sum over the quote; `len` is a multiple of 4 and at most QUOTE_MAX.  In blocks,
 * because the helper takes no length that varies with the packet's end.
 */
static __always_inline __u64 sum_quote(void *from, void *data_end, __u32 len)
{
	__u64 sum = 0;

	_Static_assert(QUOTE_MAX == 128, "the largest block");
	SUM_BLOCK(128);
	SUM_BLOCK(64);
	SUM_BLOCK(32);
	SUM_BLOCK(16);
	SUM_BLOCK(8);
	SUM_BLOCK(4);
	return sum;
}

/* Sends an ICMP error about the packet, with `rest` as the second word of the ICMP header. */
static __always_inline int answer_icmp(CTX *ctx, struct packet *p, __u8 type, __u8 code,
				       __be32 rest)
{
	__u32 ip_len = p->family == 4 ? sizeof(struct ipv4_header) : sizeof(struct ipv6_header);
	__u32 quote = (p->len < QUOTE_MAX ? p->len : QUOTE_MAX) & ~3u;
	__u32 icmp_len = quote + sizeof(struct icmp_header);
	struct icmp_header *icmp;
	__u16 partial = 0;
	bool unfinished = answer_is_unfinished(ctx, p, &partial);
	void *l3, *data_end;
	__u64 sum;

	if (answer_macs(ctx) || answer_cut(ctx, p, quote))
		return REASON_INTERNAL;
	if (answer_push(ctx, p, ip_len + sizeof(*icmp)))
		return REASON_NO_HEADROOM;
	l3 = packet_l3(ctx_data(ctx), p);
	data_end = ctx_end(ctx);
	if (l3 + (p->family == 4 ? sizeof(struct ipv4_header) : sizeof(struct ipv6_header)) +
		    sizeof(*icmp) >
	    data_end)
		return REASON_INTERNAL;
	if (p->family == 4) {
		answer_ipv4(l3, p->daddr[0], p->saddr[0], L4_ICMP, ip_len + icmp_len);
		icmp = l3 + sizeof(struct ipv4_header);
		sum = 0;
	} else {
		answer_ipv6(l3, p->daddr, p->saddr, L4_ICMPV6, icmp_len);
		icmp = l3 + sizeof(struct ipv6_header);
		sum = sum_of(p->saddr, 4) + sum_of(p->daddr, 4) + be32(L4_ICMPV6) +
		      (__u64)be32(icmp_len);
	}
	icmp->type = type;
	icmp->code = code;
	icmp->check = 0;
	icmp->rest = rest;
	sum += sum_of((__be32 *)icmp, sizeof(*icmp) / 4);
	/* The bytes that a checksum covers sum, once it is finished, to the complement of its
	 * initial value.
	 */
	sum += sum_quote(icmp + 1, data_end, unfinished ? p->l4_off : quote);
	sum += unfinished ? (__u16)~partial : 0;
	icmp->check = ~csum_fold(sum);
	return 0;
}

/* Returns the size of the largest packet that fits the path to a backend. */
static __always_inline __u32 answer_mtu(const struct backend *backend)
{
	__u32 mtu = backend->mtu;

	if (is_tunnel(backend->forward))
		mtu -= backend->family == 4 ? sizeof(struct ipv4_header) :
					      sizeof(struct ipv6_header);
	return mtu - udp_len_of(backend->forward);
}

static __always_inline int answer_too_big(CTX *ctx, struct packet *p, __u32 mtu)
{
	return p->family == 4 ?
		       answer_icmp(ctx, p, ICMP_UNREACHABLE, ICMP_UNREACHABLE_FRAG, be32(mtu)) :
		       answer_icmp(ctx, p, ICMPV6_TOO_BIG, 0, be32(mtu));
}

/* May this packet be answered at all?  Not if it went to more than one host, or if its source is
 * not a single host (RFC 1122, section 3.2.2, RFC 4443, section 2.4).
 */
static __always_inline bool answer_is_due(CTX *ctx, const struct packet *p)
{
	struct eth_header *eth = ctx_data(ctx);

	if ((void *)(eth + 1) > ctx_end(ctx) || eth->dest[0] & 1)
		return false;
	return !source_is_no_host(p);
}

static __always_inline int answer_ttl(CTX *ctx, struct packet *p, const struct route *route)
{
	/* In nat a backend addresses its packets to the client, but knows us as the VIP. */
	if (LB_NAT && route->is_reply && !p->nat_source)
		__builtin_memcpy(p->daddr, route->to.saddr, sizeof(p->daddr));
	return answer_icmp(ctx, p, p->family == 4 ? ICMP_TIME_EXCEEDED : ICMPV6_TIME_EXCEEDED, 0,
			   0);
}

/* Is there budget for this reply?  Three replies are not limited: packet too big, as in Linux,
 * because the packet is far larger than the reply; the RST for a connection that was recorded here,
 * because only its two ends can trigger it; and a challenge, because a server would answer every
 * SYN.
 */
static __always_inline bool answer_is_allowed(const struct packet *p, const struct route *route)
{
	if (budget_allows(p))
		return true;
	count_not_replied(route->service);
	return false;
}

/* Replies to the packet that is dropped for `reason`; true if a reply is made.  ICMP errors and
 * later fragments never get one (RFC 1122, section 3.2.2).
 */
static __always_inline bool answer(CTX *ctx, struct packet *p, const struct route *route,
				   int reason)
{
	struct scratch *room = scratch_room();
	struct synack *synack;

	if (!room)
		return false;
	synack = &room->synack;
	if (p->quote_off || p->is_later_fragment || ctx_is_super(ctx) || !answer_is_due(ctx, p))
		return false;
	if (LB_SYNC && p->from_peer) /* a balancer sent its frame, not the client */
		return false;
	if ((LB_SYNC || LB_IPIP || LB_GUE || LB_NAT || LB_FULLNAT) && reason == REASON_TOO_BIG)
		return route->mtu && !answer_too_big(ctx, p, route->mtu);
	if ((LB_SYNC || LB_IPIP || LB_GUE || LB_NAT || LB_FULLNAT) && reason == REASON_TTL_EXCEEDED)
		return answer_is_allowed(p, route) && !answer_ttl(ctx, p, route);
	if (p->is_fragment)
		return false;
	if (p->tcp_flags & TCP_RST)
		return false;
	if (p->l4_proto == L4_TCP && (reason == REASON_NO_FLOW || reason == REASON_CHALLENGED)) {
		if (!route->tcp_reply ||
		    (route->tcp_reply == TCP_REPLY_RST_LIMITED && !answer_is_allowed(p, route)))
			return false;
	} else {
		if (!LB_RESET || reason != REASON_NO_BACKEND || !route->sends_reset ||
		    !answer_is_allowed(p, route))
			return false;
		if (p->l4_proto == L4_UDP)
			return !answer_icmp(
				ctx, p, p->family == 4 ? ICMP_UNREACHABLE : ICMPV6_UNREACHABLE,
				p->family == 4 ? ICMP_UNREACHABLE_PORT : ICMPV6_UNREACHABLE_PORT,
				0);
	}
	if (LB_COOKIES && route->tcp_reply != TCP_REPLY_COOKIE)
		__builtin_memset(synack, 0, __builtin_offsetof(struct synack, asked));
	if (LB_COOKIES && route->tcp_reply == TCP_REPLY_COOKIE &&
	    !synack_make(ctx, p, route, synack))
		return false;
	answer_numbers(p, route, reason, synack);
	step_ends();
	return !answer_tcp(ctx, p, synack);
}

#endif
