/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Step 3: is it a packet that a sender can have meant?  What a backend's stack
 * would refuse is refused here, before it can cost a flow slot.
 */
#ifndef STEELYARD_GUARD_H
#define STEELYARD_GUARD_H

#include "abi.h"
#include "ctx.h"
#include "packet.h"

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
	/* RFC 9293 3.10.7: every segment but a SYN or RST carries ACK; a SYN
	 * carries neither FIN nor RST.
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
	/* The length is that of the whole datagram, also in a first fragment. */
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

	/* The frame may be longer (Ethernet pads), never shorter. */
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

#endif
