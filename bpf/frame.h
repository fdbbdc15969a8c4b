/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The frame around the IP packet: Ethernet header, VLAN tags, and room for outer headers.  After
 * frame_build() all pointers into the packet are stale.
 */
#ifndef STEELYARD_FRAME_H
#define STEELYARD_FRAME_H

#include "ctx.h"
#include "maps.h"
#include "packet.h"
#include "scratch.h"

/* Copies the hop from a table row, where its fields start at `mac`. */
static __always_inline void hop_set(struct hop *hop, const __u8 *mac)
{
	const __u64 *from = (const void *)mac;
	__u64 *to = (void *)hop;

	to[0] = from[0];
	to[1] = from[1];
	to[2] = from[2];
}

#if LB_TC
/* Removes the VLAN tags that the frame came with. */
static __always_inline int frame_untag(CTX *ctx, const struct packet *p)
{
	__u32 tag, tags = (p->l3_off - sizeof(struct eth_header)) / sizeof(struct vlan_header) +
			  ctx_hidden_tag(ctx, &tag);

	for (int i = 0; i < 3; i++) {
		if (i < tags && bpf_skb_vlan_pop(ctx))
			return REASON_NO_HEADROOM;
	}
	return 0;
}

/* Adds the hop's VLAN tags. */
static __always_inline int frame_tag(CTX *ctx, const struct hop *hop)
{
	if (hop->tags == 2 && bpf_skb_vlan_push(ctx, hop->vlan[2], bswap16(hop->vlan[3])))
		return REASON_NO_HEADROOM;
	if (hop->tags && bpf_skb_vlan_push(ctx, hop->vlan[0], bswap16(hop->vlan[1])))
		return REASON_NO_HEADROOM;
	return 0;
}

/* Makes room for the outer headers and sets the tags.  The outermost tag is hidden in the metadata,
 * and only those below it are in the frame.  The kernel makes room for IP only, so this is done
 * while the frame has no tags.
 */
static __always_inline int frame_room(CTX *ctx, struct packet *p, const struct hop *hop,
				      __u32 outer, __u64 flags, __u32 *l3_off)
{
	if (p->l3_off != sizeof(struct eth_header) || ctx->vlan_present) {
		int reason = frame_untag(ctx, p);

		if (reason)
			return reason;
	}
	if (outer && bpf_skb_adjust_room(ctx, outer, BPF_ADJ_ROOM_MAC, flags))
		return REASON_NO_HEADROOM;
	if (hop->tags && frame_tag(ctx, hop))
		return REASON_NO_HEADROOM;
	*l3_off = sizeof(struct eth_header) + (hop->tags == 2 ? sizeof(struct vlan_header) : 0);
	return 0;
}
#else
static __always_inline int frame_room(CTX *ctx, struct packet *p, const struct hop *hop,
				      __u32 outer, __u64 flags, __u32 *l3_off)
{
	__u32 tags = hop->tags <= 2 ? hop->tags : 2;
	int more;

	*l3_off = sizeof(struct eth_header) + tags * sizeof(struct vlan_header);
	more = (int)(*l3_off + outer) - (int)p->l3_off;
	if (more && bpf_xdp_adjust_head(ctx, -more))
		return REASON_NO_HEADROOM;
	return 0;
}
#endif

/* Builds the frame to `hop` around the IP packet, with room for `outer` bytes in front of it;
 * p->l3_off then is where that room, or the packet, begins.  `flags` tell tc what the room is for.
 */
static __always_inline int frame_build(CTX *ctx, struct packet *p, const struct hop *hop,
				       __u32 outer, __u64 flags, __be16 eth_proto)
{
	struct eth_header *eth;
	__u32 l3_off;
	__be16 *vlan;
	int reason;

	reason = frame_room(ctx, p, hop, outer, flags, &l3_off);
	if (reason)
		return reason;
	p->l3_off = l3_off;
	eth = ctx_data(ctx);
	vlan = (void *)(eth + 1);
	if ((void *)eth + L3_OFF_MAX > ctx_end(ctx))
		return REASON_INTERNAL;
	/* Both addresses, in the same words as they were stored. */
	((__u64 *)eth)[0] = ((const __u64 *)hop)[0];
	((__u32 *)eth)[2] = ((const __u64 *)hop)[1];
	if (LB_TC) { /* the kernel has added the tags */
		if (hop->tags == 2)
			vlan[1] = eth_proto;
		else
			eth->eth_proto = eth_proto;
		return 0;
	}
	if (!hop->tags) {
		eth->eth_proto = eth_proto;
		return 0;
	}
	eth->eth_proto = hop->vlan[0];
	vlan[0] = hop->vlan[1];
	vlan[1] = eth_proto;
	if (hop->tags >= 2) {
		vlan[1] = hop->vlan[2];
		vlan[2] = hop->vlan[3];
		vlan[3] = eth_proto;
	}
	return 0;
}

static __always_inline __be16 eth_proto_of(__u8 family)
{
	return family == 4 ? be16(ETH_P_IPV4) : be16(ETH_P_IPV6);
}

#endif
