/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What differs between the hooks, XDP and tc (clsact ingress), and nothing else.
 *
 * Both give a frame that starts with its Ethernet header.  Under tc the outer
 * VLAN tag is in the packet's metadata, a packet can be a super-frame of many
 * segments (GRO), and its checksum can be left for the sender's card to finish.
 */
#ifndef STEELYARD_CTX_H
#define STEELYARD_CTX_H

#include "wire.h"

#if LB_TC
#define CTX struct __sk_buff
#define VERDICT_PASS (-1) /* TC_ACT_UNSPEC: the filters after us have their turn */
#define VERDICT_DROP 2    /* TC_ACT_SHOT */
#else
#define CTX struct xdp_md
#define VERDICT_PASS XDP_PASS
#define VERDICT_DROP XDP_DROP
#endif

static __always_inline void *ctx_data(const CTX *ctx)
{
	return (void *)(long)ctx->data;
}

static __always_inline void *ctx_end(const CTX *ctx)
{
	return (void *)(long)ctx->data_end;
}

/* Of the whole frame: a tc packet's data can lie in further pages. */
static __always_inline __u32 ctx_len(const CTX *ctx)
{
#if LB_TC
	return ctx->len;
#else
	return ctx->data_end - ctx->data;
#endif
}

/* The interface that the packet came in by. */
static __always_inline __u32 ctx_ifindex(const CTX *ctx)
{
#if LB_TC
	return ctx->ifindex;
#else
	return ctx->ingress_ifindex;
#endif
}

/* Tags that are not in the frame: 1 and the tag, protocol and then TCI as on the
 * wire, or 0.
 */
static __always_inline __u32 ctx_hidden_tag(const CTX *ctx, __u32 *tag)
{
#if LB_TC
	if (!ctx->vlan_present)
		return 0;
	*tag = (__u16)ctx->vlan_proto | (__u32)bswap16(ctx->vlan_tci) << 16;
	return 1;
#else
	return 0;
#endif
}

/* A super-frame, which leaves in segments that fit: true. */
static __always_inline bool ctx_is_super(const CTX *ctx)
{
#if LB_TC
	return ctx->gso_segs > 1;
#else
	return false;
#endif
}

/* Under tc a packet is a super-frame of many, and its headers may lie further off. */
#define HEADERS_MAX 192

/* Headers have to lie in the first page to be read. */
static __always_inline void ctx_pull(CTX *ctx, __u32 len)
{
#if LB_TC
	void *data = ctx_data(ctx), *data_end = ctx_end(ctx);

	if (data + len > data_end && ctx->len > data_end - data)
		bpf_skb_pull_data(ctx, ctx->len < len ? ctx->len : len);
#endif
}

/* Out by that interface; 0: where it came in. */
static __always_inline int ctx_send(CTX *ctx, __u32 ifindex)
{
#if LB_TC
	return bpf_redirect(ifindex ? ifindex : ctx->ifindex, 0);
#else
	return ifindex && ifindex != ctx->ingress_ifindex ? bpf_redirect(ifindex, 0) : XDP_TX;
#endif
}

#endif
