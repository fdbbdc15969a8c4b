/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Step 3: can a sender have meant this packet?  What a backend's stack would refuse is refused
 * here, before it can take a flow slot: guard() checks every packet, guard_first() those that would
 * open a new flow.
 */
#ifndef STEELYARD_GUARD_H
#define STEELYARD_GUARD_H

#include "abi.h"
#include "ctx.h"
#include "filter.h"
#include "packet.h"
#include "scratch.h"
#include "service.h"

static __always_inline int guard_tcp(void *l4, void *data_end, struct packet *p)
{
	struct tcp_header *tcp = l4;
	__u32 header_len, l4_len;

	if ((void *)(tcp + 1) > data_end)
		return REASON_MALFORMED;
	header_len = (tcp->offset >> 4) * 4;
	l4_len = p->len - p->l4_off;
	if (header_len < sizeof(*tcp) || header_len > l4_len)
		return REASON_MALFORMED;
	p->tcp_flags = tcp->flags;
	p->seq = bswap32(tcp->seq);
	p->ack = bswap32(tcp->ack);
	/* RFC 9293, section 3.10.7: every segment but a SYN or RST carries ACK; a SYN carries
	 * neither FIN nor RST.
	 */
	if (!(tcp->flags & (TCP_SYN | TCP_RST | TCP_ACK)))
		return REASON_MALFORMED;
	if ((tcp->flags & TCP_SYN) && (tcp->flags & (TCP_FIN | TCP_RST)))
		return REASON_MALFORMED;
	p->payload_off = p->l4_off + header_len;
	p->payload_len = l4_len - header_len;
	return 0;
}

static __always_inline int guard_udp(void *l4, void *data_end, struct packet *p)
{
	struct udp_header *udp = l4;
	__u32 l4_len = p->len - p->l4_off;
	__u32 udp_len;

	if ((void *)(udp + 1) > data_end)
		return REASON_MALFORMED;
	udp_len = bswap16(udp->len);
	/* This is the length of the whole datagram, in a first fragment, too. */
	if (udp_len < sizeof(*udp) || (udp_len > l4_len && !p->is_fragment))
		return REASON_MALFORMED;
	p->payload_off = p->l4_off + sizeof(*udp);
	p->payload_len = udp_len - sizeof(*udp);
	return 0;
}

static __always_inline int guard(CTX *ctx, struct packet *p)
{
	void *data_end = ctx_end(ctx);
	void *l4 = packet_l4(ctx_data(ctx), p);

	/* The frame may be longer (Ethernet pads short frames), but never shorter. */
	if (p->len + p->l3_off > ctx_len(ctx))
		return REASON_MALFORMED;
	if (p->len < p->l4_off + sizeof(struct udp_header))
		return REASON_MALFORMED;
	if (p->quote_off)
		return p->len < p->payload_off ? REASON_MALFORMED : 0;
	if (p->l4_proto == L4_TCP)
		return guard_tcp(l4, data_end, p);
	return guard_udp(l4, data_end, p);
}

/* Is the source an address that no host can have?  RFC 1122, section 3.2.1.3; RFC 1112, section 4,
 * and the reserved range behind it; RFC 4291, sections 2.5 and 2.7.
 */
static __always_inline bool source_is_no_host(const struct packet *p)
{
	__u8 first = p->saddr[0];

	if (!LB_IPV6 || p->family == 4)
		return !first || first == 127 || first >= 224;
	/* ::, ::1 and addresses with an IPv4 address in them */
	if (!p->saddr[0] && !p->saddr[1] && (!p->saddr[2] || p->saddr[2] == be32(0xffff)))
		return true;
	return first == 0xff;
}

/* Is the source a VIP or a fullnat source, which are ours alone? */
static __always_inline bool source_is_own(const struct packet *p)
{
	struct address_filter *filter;
	__u32 zero = 0;

	filter = addresses.lookup(&zero);
	if (!filter)
		return false;
	if (filter_has(filter, p->family, p->saddr) && service_at(p->family, p->saddr, 0, 0))
		return true;
	return LB_PREFIX && filter_has_prefix(filter, p->saddr) && prefix_of(p->family, p->saddr);
}

/* More options than any real sender uses; four padding octets in a row count as one. */
#define IPV4_OPTIONS 8

/* RFC 7126, sections 4.3 and 4.4: the sender of such a packet also chooses the path of the answers,
 * so it can pretend to be any host.  A packet with too many options is treated like one.
 */
static __always_inline bool is_source_routed(CTX *ctx, const struct packet *p)
{
	struct scratch *room = scratch_room();
	void *data_end = ctx_end(ctx);
	void *l3 = packet_l3(ctx_data(ctx), p);

	if (!room)
		return false;
	room->option = sizeof(struct ipv4_header);
	for (int i = 0; i < IPV4_OPTIONS; i++) {
		__u8 *option = l3 + bounded(room->option, L4_OFF_MAX);
		__u8 kind, len;

		if (room->option >= p->l4_off || (void *)(option + 4) > data_end)
			return false;
		kind = option[0];
		len = option[1];
		if (kind == IPV4_OPTION_LSRR || kind == IPV4_OPTION_SSRR)
			return true;
		if (kind == IPV4_OPTION_END)
			return false;
		if (kind == IPV4_OPTION_NOP || !len)
			len = *(__u32 *)option == IPV4_OPTION_NOP * 0x01010101 ? 4 : 1;
		room->option += len;
		step_ends();
	}
	return true;
}

/* Checks for packets that no client begins a flow with. */
static __always_inline int guard_first(CTX *ctx, const struct packet *p)
{
	struct eth_header *eth = ctx_data(ctx);

	if (!p->sport || !p->dport)
		return REASON_PORT_ZERO;
	if (source_is_no_host(p) || source_is_own(p))
		return REASON_MARTIAN;
	/* RFC 1122, section 3.3.6 */
	if ((void *)(eth + 1) > ctx_end(ctx) || eth->dest[0] & 1)
		return REASON_BROADCAST;
	if (p->family == 4 && p->l4_off > sizeof(struct ipv4_header) && is_source_routed(ctx, p))
		return REASON_SOURCE_ROUTE;
	return 0;
}

#endif
