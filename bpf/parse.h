/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Step 1: who sent what to whom.  Reads the frame up to the ports; judges
 * nothing that needs to know whether the packet is for us.
 */
#ifndef STEELYARD_PARSE_H
#define STEELYARD_PARSE_H

#include "abi.h"
#include "packet.h"

static __always_inline int parse_ports(void *l4, void *data_end, struct packet *p)
{
	struct udp_header *udp = l4; /* ports stand first in TCP too */

	if (p->l4_proto != L4_TCP && p->l4_proto != L4_UDP)
		return REASON_NOT_VIP;
	if (p->is_later_fragment)
		return 0;
	/* The smaller of the two headers; guard checks the rest. */
	if ((void *)(udp + 1) > data_end)
		return REASON_NOT_VIP;
	p->sport = udp->sport;
	p->dport = udp->dport;
	return 0;
}

static __always_inline int parse_ipv4(void *l3, void *data_end, struct packet *p)
{
	struct ipv4_header *ip = l3;
	__u32 header_len;
	__u16 frag;

	if ((void *)(ip + 1) > data_end)
		return REASON_NOT_IP;
	header_len = (ip->version_ihl & 0xf) * 4;
	if (ip->version_ihl >> 4 != 4 || header_len < sizeof(*ip))
		return REASON_NOT_IP;
	p->family = 4;
	p->saddr[0] = ip->saddr;
	p->daddr[0] = ip->daddr;
	p->len = bswap16(ip->total_len);
	p->l4_off = sizeof(struct eth_header) + header_len;
	p->l4_proto = ip->l4_proto;
	p->tos = ip->tos;
	frag = bswap16(ip->frag);
	p->is_fragment = (frag & (IPV4_MF | IPV4_OFFSET)) != 0;
	p->is_later_fragment = (frag & IPV4_OFFSET) != 0;
	return parse_ports(l3 + header_len, data_end, p);
}

static __always_inline int parse_ipv6(void *l3, void *data_end, struct packet *p)
{
	struct ipv6_header *ip = l3;

	if ((void *)(ip + 1) > data_end)
		return REASON_NOT_IP;
	__builtin_memcpy(p->saddr, ip->saddr, sizeof(p->saddr));
	__builtin_memcpy(p->daddr, ip->daddr, sizeof(p->daddr));
	if ((*(__u8 *)ip) >> 4 != 6)
		return REASON_NOT_IP;
	p->family = 6;
	/* 65,536 and more would be a jumbogram (RFC 2675); no frame holds one. */
	p->len = bswap16(ip->payload_len) + sizeof(*ip);
	p->l4_off = sizeof(struct eth_header) + sizeof(*ip);
	p->l4_proto = ip->next_header;
	p->tos = bswap16(*(__be16 *)ip) >> 4;
	switch (ip->next_header) {
	case IPV6_EXT_FRAGMENT:
		p->is_fragment = 1;
		p->is_later_fragment = 1;
		return 0;
	case IPV6_EXT_HOPOPTS:
	case IPV6_EXT_ROUTING:
	case IPV6_EXT_DSTOPTS:
	case IPV6_EXT_AUTH:
		p->has_extension = 1;
		return 0;
	}
	return parse_ports(ip + 1, data_end, p);
}

static __always_inline int parse(struct xdp_md *ctx, struct packet *p)
{
	void *data_end = (void *)(long)ctx->data_end;
	void *data = (void *)(long)ctx->data;
	struct eth_header *eth = data;

	if ((void *)(eth + 1) > data_end)
		return REASON_NOT_IP;
	if (eth->eth_proto == be16(ETH_P_IPV4))
		return parse_ipv4(eth + 1, data_end, p);
	if (LB_IPV6 && eth->eth_proto == be16(ETH_P_IPV6))
		return parse_ipv6(eth + 1, data_end, p);
	return REASON_NOT_IP;
}

#endif
