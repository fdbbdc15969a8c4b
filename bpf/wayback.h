/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The way back (nat, fullnat): answers go to the router that sent the client's packets, in the same
 * VLANs and by the same interface.
 */
#ifndef STEELYARD_WAYBACK_H
#define STEELYARD_WAYBACK_H

#include "abi.h"
#include "ctx.h"
#include "packet.h"

/* Gets the frame's outer two tags as they are on the wire, protocol and then TCI; returns how many
 * there are.  `tag` is where the first tag of the frame is.
 */
static __always_inline __u32 way_back_tags(const CTX *ctx, const struct packet *p, const __u16 *tag,
					   __u32 tags[2])
{
	__u32 in_frame = (p->l3_off - sizeof(struct eth_header)) / sizeof(struct vlan_header);
	__u32 number = in_frame + ctx_hidden_tag(ctx, &tags[0]);

	if (number > in_frame && in_frame)
		tags[1] = tag[0] | (__u32)tag[1] << 16;
	else if (in_frame)
		tags[0] = tag[0] | (__u32)tag[1] << 16;
	if (number == in_frame && in_frame > 1)
		tags[1] = tag[2] | (__u32)tag[3] << 16;
	return number < 2 ? number : 2;
}

/* Written only when it has changed: the CPU that handles the answers reads this cache line. */
static __always_inline void way_back_remember(CTX *ctx, const struct packet *p,
					      struct flow_warm *warm)
{
	struct eth_header *eth = ctx_data(ctx);
	const __u16 *dest = (void *)eth, *source = dest + 3;
	__u64 *way = (void *)warm->mac, from[2];
	__u32 tags[2] = {}, number;

	if ((void *)eth + L3_OFF_MAX > ctx_end(ctx))
		return;
	number = way_back_tags(ctx, p, dest + 6, tags);
	from[0] = source[0] | (__u64)source[1] << 16 | (__u64)source[2] << 32 |
		  (__u64)dest[0] << 48;
	from[1] = dest[1] | (__u32)dest[2] << 16 | (__u64)tags[0] << 32;
	if (way[0] == from[0] && way[1] == from[1] && (__u32)way[2] == tags[1] &&
	    warm->tags == number && warm->ifindex == ctx_ifindex(ctx))
		return;
	way[0] = from[0];
	way[1] = from[1];
	*(__u32 *)&way[2] = tags[1];
	warm->tags = number;
	warm->ifindex = ctx_ifindex(ctx);
}

#endif
