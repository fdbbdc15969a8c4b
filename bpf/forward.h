/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Step 5: the packet goes to its backend. */
#ifndef STEELYARD_FORWARD_H
#define STEELYARD_FORWARD_H

#include "maps.h"
#include "packet.h"

#define OUTER_TTL 64

static __always_inline void set_macs(struct eth_header *eth, const struct backend *backend)
{
	__builtin_memcpy(eth->dest, backend->mac, sizeof(eth->dest));
	__builtin_memcpy(eth->source, backend->source_mac, sizeof(eth->source));
}

static __always_inline int forward_dsr(struct xdp_md *ctx, const struct backend *backend)
{
	void *data_end = (void *)(long)ctx->data_end;
	struct eth_header *eth = (void *)(long)ctx->data;

	if ((void *)(eth + 1) > data_end)
		return REASON_INTERNAL;
	set_macs(eth, backend);
	return 0;
}

static __always_inline __sum16 ipv4_checksum(const struct ipv4_header *ip)
{
	const __u16 *words = (const __u16 *)ip;
	__u32 sum = 0;

#pragma unroll
	for (int i = 0; i < sizeof(*ip) / 2; i++)
		sum += words[i];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* Makes room for an outer header of `len` bytes, with the Ethernet header moved
 * in front of it; `outer` is where to write it.
 */
static __always_inline int push_header(struct xdp_md *ctx, __u32 len, __be16 eth_proto,
				       const struct backend *backend, void **outer)
{
	struct eth_header *eth;

	if (bpf_xdp_adjust_head(ctx, -(int)len))
		return REASON_NO_HEADROOM;
	eth = (void *)(long)ctx->data;
	if ((void *)(eth + 1) + len > (void *)(long)ctx->data_end)
		return REASON_INTERNAL;
	set_macs(eth, backend);
	eth->eth_proto = eth_proto;
	*outer = eth + 1;
	return 0;
}

/* RFC 2003; DF always set, so a path that is too narrow answers instead of
 * fragmenting.  DSCP and ECN are copied (RFC 6040, normal mode).
 */
static __always_inline int push_ipv4(struct xdp_md *ctx, const struct packet *p,
				     const struct backend *backend)
{
	struct ipv4_header *ip;
	int reason;

	reason = push_header(ctx, sizeof(*ip), be16(ETH_P_IPV4), backend, (void **)&ip);
	if (reason)
		return reason;
	ip->version_ihl = 0x45;
	ip->tos = p->tos;
	ip->total_len = bswap16(p->len + sizeof(*ip));
	ip->id = 0;
	ip->frag = be16(IPV4_DF);
	ip->ttl = OUTER_TTL;
	ip->l4_proto = p->family == 4 ? L4_IPIP : L4_IPV6;
	ip->check = 0;
	ip->saddr = backend->source_addr[0];
	ip->daddr = backend->addr[0];
	ip->check = ipv4_checksum(ip);
	return 0;
}

/* RFC 2473. */
static __always_inline int push_ipv6(struct xdp_md *ctx, const struct packet *p,
				     const struct backend *backend)
{
	struct ipv6_header *ip;
	int reason;

	reason = push_header(ctx, sizeof(*ip), be16(ETH_P_IPV6), backend, (void **)&ip);
	if (reason)
		return reason;
	ip->version_class_label = __builtin_bswap32(6U << 28 | (__u32)p->tos << 20);
	ip->payload_len = bswap16(p->len);
	ip->next_header = p->family == 4 ? L4_IPIP : L4_IPV6;
	ip->hop_limit = OUTER_TTL;
	__builtin_memcpy(ip->saddr, backend->source_addr, sizeof(ip->saddr));
	__builtin_memcpy(ip->daddr, backend->addr, sizeof(ip->daddr));
	return 0;
}

static __always_inline int forward_ipip(struct xdp_md *ctx, const struct packet *p,
					const struct backend *backend)
{
	__u32 outer = backend->family == 4 ? sizeof(struct ipv4_header) :
					     sizeof(struct ipv6_header);

	/* mtu 0 is unknown, and p->len is at most 65,535: the length fields
	 * cannot overflow on any link that carried the packet here.
	 */
	if (backend->mtu && p->len + outer > backend->mtu)
		return REASON_TOO_BIG;
	return backend->family == 4 ? push_ipv4(ctx, p, backend) : push_ipv6(ctx, p, backend);
}

static __always_inline int forward(struct xdp_md *ctx, const struct packet *p,
				   const struct backend *backend)
{
	if (LB_IPIP && backend->forward == FORWARD_IPIP)
		return forward_ipip(ctx, p, backend);
	if (backend->forward == FORWARD_DSR)
		return forward_dsr(ctx, backend);
	return REASON_INTERNAL;
}

#endif
