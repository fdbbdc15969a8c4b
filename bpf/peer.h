/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A connection that is not known here may be known to another balancer: its packet is passed on to
 * that one, once, before a new backend is picked.
 *
 * The packet is passed on in GUE (draft-ietf-intarea-gue, variant 0), to the port of gue, and the
 * private data says that it has been passed on.  The balancer that gets it looks into its own
 * table, picks a backend if it finds nothing there either, and never passes the packet on.  Such
 * packets are accepted only from the addresses of other balancers; from any other address they are
 * the host's, untouched.
 */
#ifndef STEELYARD_PEER_H
#define STEELYARD_PEER_H

#include "count.h"
#include "encap.h"
#include "flow.h"

/* The most that each CPU passes on: forged packets must not flood the other balancer. */
#define PEER_WINDOW (LB_HZ / 10) /* jiffies */
#define PEER_WINDOW_PACKETS 1000
#define PEER_LIFE (4 * LB_HZ) /* jiffies: no announcement is valid for longer */

#define ADJ_ROOM_DECAP_L3_IPV4 (1ULL << 7) /* Linux 6.3 */
#define ADJ_ROOM_DECAP_L3_IPV6 (1ULL << 8)

static __always_inline bool peer_within_rate(void)
{
	struct sync_counters *c = sync_counters_here();
	__u32 now = bpf_jiffies64();

	if (!c)
		return false;
	if (now - c->window >= PEER_WINDOW) {
		c->window = now;
		c->in_window = 0;
	}
	if (c->in_window >= PEER_WINDOW_PACKETS) {
		c->not_passed++;
		return false;
	}
	c->in_window++;
	c->passed_on++;
	return true;
}

/* Our agent keeps extending the time until which the peer counts as alive; if the agent dies, that
 * soon runs out.
 */
static __always_inline bool peer_is_alive(const struct backend *peer)
{
	__u32 until = peer->until, left = until - (__u32)bpf_jiffies64();

	return until && left - 1 < PEER_LIFE;
}

/* Returns the balancer that may know this packet's flow, which is not recorded here, or NULL. */
static __always_inline struct backend *peer_for(const struct packet *p, const struct flow *flow)
{
	__u32 row = LB_BACKENDS + (flow->at->tag & (PEER_ROWS - 1));
	struct backend *peer;

	if (p->l4_proto != L4_TCP || p->tcp_flags & TCP_SYN || p->is_fragment || p->from_peer)
		return NULL;
	peer = backends.lookup(&row);
	if (!peer || !peer_is_alive(peer) || !peer_within_rate())
		return NULL;
	return peer;
}

#if LB_TC
/* Removes `len` bytes behind the link header, which has `off` bytes.  The kernel finds IP only
 * behind a bare Ethernet header, and it would go on treating a super-frame as tunnelled.  Such
 * packets are dropped, and their sender tries again with smaller ones.
 */
static __always_inline int peer_pull(CTX *ctx, __u32 off, __u32 len, __be16 from, __be16 to)
{
	__u64 flags = to == be16(ETH_P_IPV4) ? ADJ_ROOM_DECAP_L3_IPV4 : ADJ_ROOM_DECAP_L3_IPV6;
	struct eth_header *eth;

	if (off != sizeof(*eth) || ctx_is_super(ctx) ||
	    bpf_skb_adjust_room(ctx, -(int)len, BPF_ADJ_ROOM_MAC, from == to ? 0 : flags))
		return REASON_NO_HEADROOM;
	ctx_pull(ctx, HEADERS_MAX);
	eth = ctx_data(ctx);
	if ((void *)(eth + 1) > ctx_end(ctx))
		return REASON_INTERNAL;
	eth->eth_proto = to;
	return 0;
}
#else
static __always_inline int peer_pull(CTX *ctx, __u32 off, __u32 len, __be16 from, __be16 to)
{
	__u16 *old = ctx_data(ctx), *new = (void *)old + len;

	if ((void *)new + L3_OFF_MAX > ctx_end(ctx))
		return REASON_INTERNAL;
#pragma unroll
	for (__u32 i = 0; i < L3_OFF_MAX / 2; i++) {
		if (2 * i < off)
			new[i] = 2 * i == off - 2 ? to : old[i];
	}
	return bpf_xdp_adjust_head(ctx, len) ? REASON_NO_HEADROOM : 0;
}
#endif

/* Removes the outer headers of a packet that another balancer has passed on.  `key`: room for the
 * two balancers' addresses.
 */
static __always_inline int peer_unwrap(CTX *ctx, struct packet *p, struct peer_key *key)
{
	void *data = ctx_data(ctx), *data_end = ctx_end(ctx);
	struct eth_header *eth = data;
	__u32 off = sizeof(*eth), len;
	struct sync_counters *c;
	struct gue_header *gue;
	struct udp_header *udp;
	__be16 eth_proto, inner;

	if ((void *)(eth + 1) > data_end)
		return 0;
	eth_proto = eth->eth_proto;
#pragma unroll
	for (int i = 0; i < 2; i++) {
		struct vlan_header *vlan = data + off;

		if (eth_proto != be16(ETH_P_VLAN) && eth_proto != be16(ETH_P_QINQ))
			break;
		if ((void *)(vlan + 1) > data_end)
			return 0;
		eth_proto = vlan->eth_proto;
		off += sizeof(*vlan);
	}
	if (eth_proto == be16(ETH_P_IPV4)) {
		struct ipv4_header *ip = data + off;

		if ((void *)(ip + 1) > data_end || ip->l4_proto != L4_UDP ||
		    ip->version_ihl != 0x45 || ip->frag & be16(IPV4_MF | IPV4_OFFSET))
			return 0;
		__builtin_memset(key, 0, sizeof(*key));
		key->addr[0] = ip->saddr;
		key->own[0] = ip->daddr;
		len = sizeof(*ip);
	} else if (eth_proto == be16(ETH_P_IPV6)) { /* also if no service has IPv6 */
		struct ipv6_header *ip = data + off;

		if ((void *)(ip + 1) > data_end || ip->next_header != L4_UDP)
			return 0;
		__builtin_memcpy(key->addr, ip->saddr, sizeof(key->addr));
		__builtin_memcpy(key->own, ip->daddr, sizeof(key->own));
		len = sizeof(*ip);
	} else {
		return 0;
	}
	udp = data + off + len;
	gue = (void *)(udp + 1);
	if ((void *)(gue + 1) > data_end || udp->dport != be16(LB_GUE_PORT) ||
	    gue->version_hlen != GUE_VERSION_HLEN || gue->flags || gue->mark != be32(GUE_MARK))
		return 0;
	if (gue->l4_proto != L4_IPIP && gue->l4_proto != L4_IPV6)
		return 0;
	inner = gue->l4_proto == L4_IPIP ? be16(ETH_P_IPV4) : be16(ETH_P_IPV6);
	c = sync_counters_here();
	if (!c)
		return 0;
	if (!peers.lookup(key)) {
		c->strangers++;
		return 0;
	}
	c->taken++;
	p->from_peer = 1;
	return peer_pull(ctx, off, len + sizeof(*udp) + sizeof(*gue), eth_proto, inner);
}

#endif
