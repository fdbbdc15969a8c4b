/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Step 1: reads the frame up to the ports.  Judges nothing that depends on whether the packet is
 * for us.
 */
#ifndef STEELYARD_PARSE_H
#define STEELYARD_PARSE_H

#include "abi.h"
#include "ctx.h"
#include "packet.h"
#include "scratch.h"

/* The largest number of extension headers that real senders have been seen to use. */
#define IPV6_EXTENSIONS 6

static __always_inline int parse_quoted_ports(void *l4, void *data_end, __u8 l4_proto,
					      __u32 header_len, struct packet *p)
{
	struct udp_header *udp = l4;

	if (l4_proto != L4_TCP && l4_proto != L4_UDP)
		return REASON_NOT_VIP;
	/* RFC 792: 64 bits of the quoted datagram have to suffice. */
	if ((void *)(udp + 1) > data_end)
		return REASON_NOT_VIP;
	p->sport = udp->dport;
	p->dport = udp->sport;
	p->l4_proto = l4_proto;
	p->payload_off = p->quote_off + header_len + sizeof(*udp);
	return 0;
}

static __always_inline int parse_quoted_ipv4(void *l3, void *data_end, struct packet *p)
{
	struct ipv4_header *ip = l3;
	__u32 header_len;

	if ((void *)(ip + 1) > data_end)
		return REASON_NOT_VIP;
	header_len = (ip->version_ihl & 0xf) * 4;
	if (ip->version_ihl >> 4 != 4 || header_len < sizeof(*ip) || ip->frag & be16(IPV4_OFFSET))
		return REASON_NOT_VIP;
	/* An ICMP error goes to the sender of the packet that it quotes. */
	if (ip->saddr != p->daddr[0])
		return REASON_NOT_VIP;
	p->saddr[0] = ip->daddr;
	return parse_quoted_ports(l3 + header_len, data_end, ip->l4_proto, header_len, p);
}

static __always_inline int parse_quoted_ipv6(void *l3, void *data_end, struct packet *p)
{
	struct ipv6_header *ip = l3;

	if ((void *)(ip + 1) > data_end || *(__u8 *)ip >> 4 != 6)
		return REASON_NOT_VIP;
	if (ip->saddr[0] != p->daddr[0] || ip->saddr[1] != p->daddr[1] ||
	    ip->saddr[2] != p->daddr[2] || ip->saddr[3] != p->daddr[3])
		return REASON_NOT_VIP;
	__builtin_memcpy(p->saddr, ip->daddr, sizeof(p->saddr));
	return parse_quoted_ports(ip + 1, data_end, ip->next_header, sizeof(*ip), p);
}

/* Parses an ICMP error, which is about the flow of the packet that it quotes. */
static __always_inline int parse_icmp(void *l4, void *data_end, struct packet *p)
{
	struct icmp_header *icmp = l4;

	if (p->is_fragment || (void *)(icmp + 1) > data_end)
		return REASON_NOT_VIP;
	p->quote_off = p->l4_off + sizeof(*icmp);
	if (p->family == 4) {
		switch (icmp->type) {
		case ICMP_UNREACHABLE:
		case ICMP_SOURCE_QUENCH:
		case ICMP_TIME_EXCEEDED:
		case ICMP_PARAMETER:
			return parse_quoted_ipv4(icmp + 1, data_end, p);
		}
		return REASON_NOT_VIP;
	}
	if (icmp->type < ICMPV6_UNREACHABLE || icmp->type > ICMPV6_PARAMETER)
		return REASON_NOT_VIP;
	return parse_quoted_ipv6(icmp + 1, data_end, p);
}

static __always_inline bool is_extension(__u8 l4_proto)
{
	return l4_proto == IPV6_EXT_HOPOPTS || l4_proto == IPV6_EXT_ROUTING ||
	       l4_proto == IPV6_EXT_DSTOPTS || l4_proto == IPV6_EXT_AUTH ||
	       l4_proto == IPV6_EXT_FRAGMENT;
}

static __always_inline int parse_ports(void *l4, void *data_end, struct packet *p)
{
	struct udp_header *udp = l4; /* TCP begins with the ports, too */

	/* A later fragment names the header that the first one continues with; in IPv6 that can be
	 * an extension.
	 */
	if (p->is_later_fragment && p->family == 6 && is_extension(p->l4_proto))
		return 0;
	if (p->l4_proto != L4_TCP && p->l4_proto != L4_UDP) {
		if (p->l4_proto == (p->family == 4 ? L4_ICMP : L4_ICMPV6))
			return parse_icmp(l4, data_end, p);
		return REASON_NOT_VIP;
	}
	if (p->is_later_fragment)
		return 0;
	/* The smaller of the two headers; guard() checks the rest. */
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
	p->l4_off = header_len;
	p->l4_proto = ip->l4_proto;
	p->tos = ip->tos;
	p->ttl = ip->ttl;
	frag = bswap16(ip->frag);
	if (frag & (IPV4_MF | IPV4_OFFSET)) {
		p->is_fragment = 1;
		p->is_later_fragment = (frag & IPV4_OFFSET) != 0;
		p->fragment_id = ip->id;
	}
	return parse_ports(l3 + header_len, data_end, p);
}

/* Steps over one extension header: advances l4_off and l4_proto. */
static __always_inline int parse_extension(void *l3, void *data_end, struct packet *p)
{
	struct ipv6_fragment *header = l3 + bounded(p->l4_off, L4_OFF_MAX);
	__u32 len = sizeof(*header); /* that of a fragment header, and the minimum of all */

	if ((void *)(header + 1) > data_end)
		return REASON_NOT_VIP;
	if (p->l4_proto == IPV6_EXT_FRAGMENT) {
		__u16 place = bswap16(header->offset);

		/* With neither of the two it is not a fragment (RFC 6946). */
		if (place & (IPV6_FRAG_OFFSET | IPV6_FRAG_MORE)) {
			p->is_fragment = 1;
			p->is_later_fragment = (place & IPV6_FRAG_OFFSET) != 0;
			p->fragment_id = header->id;
		}
	} else if (p->l4_proto == IPV6_EXT_ROUTING && header->offset & be16(0xff)) {
		/* Segments are left: the packet is on its way to another address (RFC 8200, section
		 * 4.4), so this hop is the host's business.
		 */
		return REASON_NOT_VIP;
	} else if (p->l4_proto == IPV6_EXT_AUTH) {
		len = (header->reserved + 2) * 4; /* the length field of RFC 4302 */
	} else {
		len = (header->reserved + 1) * 8;
	}
	p->l4_proto = header->next_header;
	p->l4_off += len;
	p->has_extension = p->l4_off > L4_OFF_MAX;
	return 0;
}

/* Follows the extension headers (RFC 8200, section 4).  What it writes to `p` it reads back: see
 * step_ends().
 */
static __always_inline int parse_extensions(void *l3, void *data_end, struct packet *p)
{
	for (int i = 0; i < IPV6_EXTENSIONS; i++) {
		if (!is_extension(p->l4_proto) || p->is_later_fragment || p->has_extension)
			break;
		if (parse_extension(l3, data_end, p))
			return REASON_NOT_VIP;
		step_ends();
	}
	if (!p->is_later_fragment && is_extension(p->l4_proto))
		p->has_extension = 1;
	if (p->has_extension)
		return 0;
	return parse_ports(l3 + bounded(p->l4_off, L4_OFF_MAX), data_end, p);
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
	p->l4_off = sizeof(*ip);
	p->l4_proto = ip->next_header;
	p->tos = bswap16(*(__be16 *)ip) >> 4;
	p->ttl = ip->hop_limit;
	if (ip->next_header == L4_TCP || ip->next_header == L4_UDP)
		return parse_ports(ip + 1, data_end, p);
	return parse_extensions(l3, data_end, p);
}

static __always_inline int parse(CTX *ctx, struct packet *p)
{
	void *data_end = ctx_end(ctx);
	void *data = ctx_data(ctx);
	struct eth_header *eth = data;
	__u32 offset = sizeof(*eth);
	__be16 eth_proto;

	if ((void *)(eth + 1) > data_end)
		return REASON_NOT_IP;
	eth_proto = eth->eth_proto;
#pragma unroll
	for (int i = 0; i < 2; i++) {
		struct vlan_header *vlan = data + offset;

		if (eth_proto != be16(ETH_P_VLAN) && eth_proto != be16(ETH_P_QINQ))
			break;
		if ((void *)(vlan + 1) > data_end)
			return REASON_NOT_IP;
		eth_proto = vlan->eth_proto;
		offset += sizeof(*vlan);
	}
	p->l3_off = offset;
	if (eth_proto == be16(ETH_P_IPV4))
		return parse_ipv4(data + offset, data_end, p);
	if (LB_IPV6 && eth_proto == be16(ETH_P_IPV6))
		return parse_ipv6(data + offset, data_end, p);
	return REASON_NOT_IP;
}

#endif
