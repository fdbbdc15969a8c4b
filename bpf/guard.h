/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Step 3: is it a packet that a sender can have meant?  What a backend's stack
 * would refuse is refused here, before it can cost a flow slot.
 */
#ifndef STEELYARD_GUARD_H
#define STEELYARD_GUARD_H

#include "abi.h"
#include "packet.h"

static __always_inline int guard_tcp(void *data, void *data_end, struct packet *p)
{
	struct tcp_header *tcp = data + p->l4_off;
	__u32 header_len, l4_len;

	if ((void *)(tcp + 1) > data_end)
		return REASON_MALFORMED;
	header_len = (tcp->offset >> 4) * 4;
	l4_len = p->len - (p->l4_off - sizeof(struct eth_header));
	if (header_len < sizeof(*tcp) || header_len > l4_len)
		return REASON_MALFORMED;
	p->tcp_flags = tcp->flags;
	/* RFC 9293 3.10.7: every segment but a SYN or RST carries ACK; a SYN
	 * carries neither FIN nor RST.
	 */
	if (!(tcp->flags & (TCP_SYN | TCP_RST | TCP_ACK)))
		return REASON_MALFORMED;
	if ((tcp->flags & TCP_SYN) && (tcp->flags & (TCP_FIN | TCP_RST)))
		return REASON_MALFORMED;
	p->has_payload = l4_len > header_len;
	return 0;
}

static __always_inline int guard_udp(void *data, void *data_end, struct packet *p)
{
	struct udp_header *udp = data + p->l4_off;
	__u32 l4_len = p->len - (p->l4_off - sizeof(struct eth_header));
	__u32 udp_len;

	if ((void *)(udp + 1) > data_end)
		return REASON_MALFORMED;
	udp_len = bswap16(udp->len);
	if (udp_len < sizeof(*udp) || udp_len > l4_len)
		return REASON_MALFORMED;
	p->has_payload = 1;
	return 0;
}

static __always_inline int guard(struct xdp_md *ctx, struct packet *p)
{
	void *data_end = (void *)(long)ctx->data_end;
	void *data = (void *)(long)ctx->data;
	__u32 l3_len = data_end - data - sizeof(struct eth_header);

	if (p->is_fragment)
		return REASON_FRAGMENT;
	/* The frame may be longer (Ethernet pads), never shorter. */
	if (p->len > l3_len)
		return REASON_MALFORMED;
	if (p->len < p->l4_off - sizeof(struct eth_header) + sizeof(struct udp_header))
		return REASON_MALFORMED;
	/* For the verifier: IPv4 options end at byte 60. */
	if (p->l4_off > sizeof(struct eth_header) + 60)
		return REASON_MALFORMED;
	if (p->l4_proto == L4_TCP)
		return guard_tcp(data, data_end, p);
	return guard_udp(data, data_end, p);
}

#endif
