// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* For backends whose kernel has no tunnel device: takes the outer header off
 * what a balancer has encapsulated, and passes the inner packet to the host.
 *
 * Only packets whose inner destination is one of our VIPs are touched; anything
 * else, other tunnels included, passes as it came: what cannot be taken apart is
 * the host's to judge.
 */
#include "wire.h"

struct vip_key {
	__be32 addr[4]; /* IPv4: word 0, the rest 0 */
};

/* VIP -> 1.  `lb-agent decap` writes before it attaches. */
BPF_HASH(decap_vips, struct vip_key, u8, 256);

struct inner {
	__u32 outer_len;
	__be16 eth_proto;
	struct vip_key vip;
};

static __always_inline bool inner_of(void *l3, void *data_end, __u32 outer_len, __u8 l4_proto,
				     struct inner *in)
{
	in->outer_len = outer_len;
	if (l4_proto == L4_IPIP) {
		struct ipv4_header *ip = l3 + outer_len;

		if ((void *)(ip + 1) > data_end || ip->version_ihl >> 4 != 4)
			return false;
		in->eth_proto = be16(ETH_P_IPV4);
		in->vip.addr[0] = ip->daddr;
		return true;
	}
	if (l4_proto == L4_IPV6) {
		struct ipv6_header *ip = l3 + outer_len;

		if ((void *)(ip + 1) > data_end || *(__u8 *)ip >> 4 != 6)
			return false;
		in->eth_proto = be16(ETH_P_IPV6);
		__builtin_memcpy(in->vip.addr, ip->daddr, sizeof(in->vip.addr));
		return true;
	}
	return false;
}

static __always_inline bool find_inner(struct xdp_md *ctx, struct inner *in)
{
	void *data_end = (void *)(long)ctx->data_end;
	struct eth_header *eth = (void *)(long)ctx->data;
	void *l3 = eth + 1;

	if (l3 > data_end)
		return false;
	if (eth->eth_proto == be16(ETH_P_IPV4)) {
		struct ipv4_header *ip = l3;

		/* A balancer sends no options and never fragments. */
		if ((void *)(ip + 1) > data_end || ip->version_ihl != 0x45 ||
		    ip->frag & be16(IPV4_MF | IPV4_OFFSET))
			return false;
		return inner_of(l3, data_end, sizeof(*ip), ip->l4_proto, in);
	}
	if (eth->eth_proto == be16(ETH_P_IPV6)) {
		struct ipv6_header *ip = l3;

		if ((void *)(ip + 1) > data_end)
			return false;
		return inner_of(l3, data_end, sizeof(*ip), ip->next_header, in);
	}
	return false;
}

int decap(struct xdp_md *ctx)
{
	struct inner in = {};
	struct eth_header *eth;
	__u8 macs[12];

	if (!find_inner(ctx, &in) || !decap_vips.lookup(&in.vip))
		return XDP_PASS;
	eth = (void *)(long)ctx->data;
	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return XDP_PASS;
	__builtin_memcpy(macs, eth, sizeof(macs));
	if (bpf_xdp_adjust_head(ctx, in.outer_len))
		return XDP_PASS;
	eth = (void *)(long)ctx->data;
	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return XDP_DROP; /* the header is gone, so it cannot be passed as it came */
	__builtin_memcpy(eth, macs, sizeof(macs));
	eth->eth_proto = in.eth_proto;
	return XDP_PASS;
}
