// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* For backends whose kernel has no tunnel device: takes off the outer header of packets that a
 * balancer has encapsulated (ipip, or gue: an outer UDP header too), and passes the inner packet to
 * the host.  VLAN tags stay in front of it.
 *
 * Only packets whose inner destination is one of our VIPs are touched, and with LB_DECAP_FROM only
 * those that a balancer has sent.  Any other packet, other tunnels included, passes untouched: it
 * is for the host to judge.  LB_GUE_PORT is the UDP destination port of gue.
 */
#include "wire.h"

/* Number of outer VLAN tags that we skip: a service tag and a customer tag. */
#define DECAP_TAGS 2
#define DECAP_C_TAG 0x8100 /* IEEE 802.1Q */
#define DECAP_S_TAG 0x88a8 /* IEEE 802.1ad */

#define ECN_MASK 0x3
#define ECN_NOT_ECT 0x0
#define ECN_ECT1 0x1
#define ECN_ECT0 0x2
#define ECN_CE 0x3

struct vip_key {
	__be32 addr[4]; /* IPv4: word 0, the rest 0 */
};

/* VIP -> 1.  `lb-agent decap` writes these before it attaches the program. */
BPF_HASH(decap_vips, struct vip_key, u8, 4096);

/* Longest prefix match: a host that may send tunnel packets -> 1. */
struct sender_key {
	__u32 prefix_len; /* 32 + bits of the address */
	__u32 family;     /* 4 or 6 */
	__be32 addr[4];
};

/* `lb-agent decap` writes these before it attaches the program. */
BPF_F_TABLE("lpm_trie", struct sender_key, u8, decap_senders, 256, BPF_F_NO_PREALLOC);

struct decap_tag {
	__be16 tci;
	__be16 eth_proto; /* of what follows */
};

/* A packet from a balancer.  Offsets are from the start of the frame.  They have 64 bits because
 * the verifier remembers no smaller value on the stack.
 */
struct tunnel {
	__u64 outer_off; /* of the outer IP header: 14, 18 or 22 */
	__u64 inner_off; /* of the inner IP header */
	__u8 outer_ecn;
	__u8 inner_ecn;
	__be16 inner_proto; /* as an Ethernet type */
	struct vip_key vip;
	struct sender_key sender;
};

/* The MACs and the tags: everything before the last Ethernet type. */
struct link_header {
	__u8 macs[12];
	__u8 tag[DECAP_TAGS][4]; /* type, then control information */
};

static __always_inline bool find_inner(void *data, void *data_end, __u8 version, struct tunnel *tun)
{
	void *inner = data + tun->inner_off;

	if (version == 4) {
		struct ipv4_header *ip = inner;

		if ((void *)(ip + 1) > data_end || ip->version_ihl >> 4 != 4)
			return false;
		tun->inner_proto = be16(ETH_P_IPV4);
		tun->inner_ecn = ip->tos & ECN_MASK;
		tun->vip.addr[0] = ip->daddr;
	} else {
		struct ipv6_header *ip = inner;

		if ((void *)(ip + 1) > data_end || *(__u8 *)ip >> 4 != 6)
			return false;
		tun->inner_proto = be16(ETH_P_IPV6);
		tun->inner_ecn = ((__u8 *)ip)[1] >> 4 & ECN_MASK;
		__builtin_memcpy(tun->vip.addr, ip->daddr, sizeof(tun->vip.addr));
	}
	return true;
}

static __always_inline bool find_payload(void *data, void *data_end, __u8 l4_proto, __u64 off,
					 struct tunnel *tun)
{
	struct udp_header *udp = data + off;
	__u8 version;

	tun->inner_off = off;
	if (l4_proto == L4_IPIP)
		return find_inner(data, data_end, 4, tun);
	if (l4_proto == L4_IPV6)
		return find_inner(data, data_end, 6, tun);
	if (l4_proto != L4_UDP)
		return false;
	/* GUE variant 1 has no header of its own: its version bits, 01, are also the first bits of
	 * IP versions 4 and 6.  The outer UDP checksum is not checked: the inner packet has its
	 * own.
	 */
	if ((void *)(udp + 1) + 1 > data_end || udp->dport != be16(LB_GUE_PORT))
		return false;
	version = *(__u8 *)(udp + 1) >> 4;
	tun->inner_off = off + sizeof(*udp);
	return (version == 4 || version == 6) && find_inner(data, data_end, version, tun);
}

static __always_inline bool find_tunnel(struct xdp_md *ctx, struct tunnel *tun)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	__u64 off = sizeof(struct eth_header);
	__be16 eth_proto;

	if (data + off > data_end)
		return false;
	eth_proto = ((struct eth_header *)data)->eth_proto;
#pragma unroll
	for (int i = 0; i < DECAP_TAGS; i++) {
		struct decap_tag *tag = data + off;

		if (eth_proto != be16(DECAP_C_TAG) && eth_proto != be16(DECAP_S_TAG))
			break;
		if ((void *)(tag + 1) > data_end)
			return false;
		eth_proto = tag->eth_proto;
		off += sizeof(*tag);
	}
	tun->outer_off = off;
	if (eth_proto == be16(ETH_P_IPV4)) {
		struct ipv4_header *ip = data + off;

		/* A balancer's outer header has no options and is never fragmented. */
		if ((void *)(ip + 1) > data_end || ip->version_ihl != 0x45 ||
		    ip->frag & be16(IPV4_MF | IPV4_OFFSET))
			return false;
		tun->outer_ecn = ip->tos & ECN_MASK;
		tun->sender.family = 4;
		tun->sender.addr[0] = ip->saddr;
		return find_payload(data, data_end, ip->l4_proto, off + sizeof(*ip), tun);
	}
	if (eth_proto == be16(ETH_P_IPV6)) {
		struct ipv6_header *ip = data + off;

		if ((void *)(ip + 1) > data_end || *(__u8 *)ip >> 4 != 6)
			return false;
		tun->outer_ecn = ((__u8 *)ip)[1] >> 4 & ECN_MASK;
		tun->sender.family = 6;
		__builtin_memcpy(tun->sender.addr, ip->saddr, sizeof(tun->sender.addr));
		return find_payload(data, data_end, ip->next_header, off + sizeof(*ip), tun);
	}
	return false;
}

/* The resulting ECN: RFC 6040, figure 4, but for the case that is dropped. */
static __always_inline __u8 ecn_of(const struct tunnel *tun)
{
	if (tun->inner_ecn == ECN_NOT_ECT)
		return ECN_NOT_ECT;
	if (tun->outer_ecn == ECN_CE)
		return ECN_CE;
	if (tun->outer_ecn == ECN_ECT1 && tun->inner_ecn == ECN_ECT0)
		return ECN_ECT1;
	return tun->inner_ecn;
}

static __always_inline bool mark_inner(struct xdp_md *ctx, const struct tunnel *tun, __u8 ecn)
{
	void *data_end = (void *)(long)ctx->data_end;
	void *inner = (void *)(long)ctx->data + tun->inner_off;

	if (tun->inner_proto == be16(ETH_P_IPV4)) {
		struct ipv4_header *ip = inner;
		__u32 sum;

		if ((void *)(ip + 1) > data_end)
			return false;
		/* RFC 1624; the type of service is the low half of the first word. */
		sum = (__u16)~bswap16(ip->check) + (__u16)~tun->inner_ecn + ecn;
		sum = (sum & 0xffff) + (sum >> 16);
		sum = (sum & 0xffff) + (sum >> 16);
		ip->check = be16((__u16)~sum);
		ip->tos = (ip->tos & ~ECN_MASK) | ecn;
	} else {
		__u8 *traffic_class = inner + 1; /* its low four bits belong to the flow label */

		if ((void *)(traffic_class + 1) > data_end)
			return false;
		*traffic_class = (*traffic_class & ~(ECN_MASK << 4)) | ecn << 4;
	}
	return true;
}

/* Any frame that holds a tunnel packet is longer than this header. */
static __always_inline bool read_link_header(struct xdp_md *ctx, struct link_header *link)
{
	void *data = (void *)(long)ctx->data;

	if (data + sizeof(*link) > (void *)(long)ctx->data_end)
		return false;
	__builtin_memcpy(link, data, sizeof(*link));
	return true;
}

static __always_inline bool write_link_header(struct xdp_md *ctx, const struct tunnel *tun,
					      const struct link_header *link)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	__be16 *eth_proto = data + tun->outer_off - sizeof(__be16);

	if (data + sizeof(*link) > data_end || (void *)(eth_proto + 1) > data_end)
		return false;
	__builtin_memcpy(data, link->macs, sizeof(link->macs));
	if (tun->outer_off > sizeof(struct eth_header))
		__builtin_memcpy(data + 12, link->tag[0], sizeof(link->tag[0]));
	if (tun->outer_off > sizeof(struct eth_header) + sizeof(struct decap_tag))
		__builtin_memcpy(data + 16, link->tag[1], sizeof(link->tag[1]));
	*eth_proto = tun->inner_proto;
	return true;
}

static __always_inline bool sender_is_balancer(struct tunnel *tun)
{
	tun->sender.prefix_len = 32 + 128;
	return !LB_DECAP_FROM || decap_senders.lookup(&tun->sender);
}

int decap(struct xdp_md *ctx)
{
	struct link_header link = {};
	struct tunnel tun = {};
	__u8 ecn;

	if (!find_tunnel(ctx, &tun) || !decap_vips.lookup(&tun.vip) || !sender_is_balancer(&tun))
		return XDP_PASS;
	/* Congestion that a mark cannot report, as the inner packet is not ECN-capable: RFC 6040
	 * says drop.
	 */
	if (tun.outer_ecn == ECN_CE && tun.inner_ecn == ECN_NOT_ECT)
		return XDP_DROP;
	ecn = ecn_of(&tun);
	if (ecn != tun.inner_ecn && !mark_inner(ctx, &tun, ecn))
		return XDP_PASS;
	if (!read_link_header(ctx, &link) ||
	    bpf_xdp_adjust_head(ctx, tun.inner_off - tun.outer_off))
		return XDP_PASS;
	/* The outer header is gone, so the packet can no longer be passed as it came. */
	return write_link_header(ctx, &tun, &link) ? XDP_PASS : XDP_DROP;
}
