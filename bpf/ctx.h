/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The differences between the two hooks, XDP and tc (clsact ingress), and nothing else.
 *
 * Both give a frame that starts with its Ethernet header.  Under tc the outer VLAN tag is in the
 * packet's metadata, a packet can be a super-frame of many segments (GRO), and its checksum can be
 * left for the sender's card to finish.
 */
#ifndef STEELYARD_CTX_H
#define STEELYARD_CTX_H

#include "wire.h"

#if LB_TC
#define CTX struct __sk_buff
#define VERDICT_PASS (-1) /* TC_ACT_UNSPEC: go on with the next filter */
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

/* The length of the whole frame.  Under tc, some of its data can lie in further pages. */
static __always_inline __u32 ctx_len(const CTX *ctx)
{
#if LB_TC
	return ctx->len;
#else
	return ctx->data_end - ctx->data;
#endif
}

/* The interface by which the packet came in. */
static __always_inline __u32 ctx_ifindex(const CTX *ctx)
{
#if LB_TC
	return ctx->ifindex;
#else
	return ctx->ingress_ifindex;
#endif
}

/* Gets a VLAN tag that is not in the frame.  Returns 1 and the tag, protocol and then TCI as on the
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

/* Is it a super-frame, which leaves as segments that fit? */
static __always_inline bool ctx_is_super(const CTX *ctx)
{
#if LB_TC
	return ctx->gso_segs > 1;
#else
	return false;
#endif
}

/* Under tc, a program can read only a packet's first page.  Packets of a local socket, and those of
 * a card that merges packets (GRO), often have all of their payload in further pages.
 */
#define HEADERS_MAX 192

/* Makes the first `len` bytes of the frame readable.  Pointers into the packet are void afterwards. */
static __always_inline void ctx_pull(CTX *ctx, __u32 len)
{
#if LB_TC
	void *data = ctx_data(ctx), *data_end = ctx_end(ctx);

	if (data + len > data_end && ctx->len > data_end - data)
		bpf_skb_pull_data(ctx, ctx->len < len ? ctx->len : len);
#endif
}

/* Sends the packet out by that interface; 0: by the one that it came in by. */
static __always_inline int ctx_send(CTX *ctx, __u32 ifindex)
{
#if LB_TC
	return bpf_redirect(ifindex ? ifindex : ctx->ifindex, 0);
#else
	return ifindex && ifindex != ctx->ingress_ifindex ? bpf_redirect(ifindex, 0) : XDP_TX;
#endif
}

#endif
