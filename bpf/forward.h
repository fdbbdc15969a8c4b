/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Step 6: sends the packet the way that its route says. */
#ifndef STEELYARD_FORWARD_H
#define STEELYARD_FORWARD_H

#include "encap.h"
#include "frame.h"
#include "maps.h"
#include "nat.h"
#include "packet.h"
#include "scratch.h"

static __always_inline bool is_nat(__u8 forward)
{
	return (LB_NAT && forward == FORWARD_NAT) || (LB_FULLNAT && forward == FORWARD_FULLNAT);
}

static __always_inline bool is_tunnel(__u8 forward)
{
	return (LB_IPIP && forward == FORWARD_IPIP) || (LB_GUE && forward == FORWARD_GUE) ||
	       (LB_SYNC && forward == FORWARD_PEER);
}

/* Fills in the route of a client's packet. */
static __always_inline void route_to(struct route *route, const struct backend *backend)
{
	hop_set(&route->hop, backend->mac);
	route->ifindex = backend->ifindex;
	route->forward = backend->forward;
	route->is_reply = 0;
}

/* Fills in the route of a backend's packet. */
static __always_inline void route_back(struct route *route, const struct flow_warm *warm)
{
	hop_set(&route->hop, warm->mac);
	route->ifindex = warm->ifindex;
	route->forward = LB_NAT ? FORWARD_NAT : FORWARD_FULLNAT;
	route->is_reply = 1;
	route->hide_source = 0;
}

/* Sets the addresses to rewrite to.  nat keeps the client's; nat_bind() sets fullnat's source. */
static __always_inline void route_rewrite(struct route *route, const struct packet *p,
					  const struct backend *backend)
{
	struct rewrite *to = &route->to;

	__builtin_memcpy(to->daddr, backend->addr, sizeof(to->daddr));
	to->dport = backend->port ? backend->port : p->dport;
	route->hide_source = backend->forward == FORWARD_FULLNAT;
	if (LB_NAT && backend->forward == FORWARD_NAT) {
		__builtin_memcpy(to->saddr, p->saddr, sizeof(to->saddr));
		to->sport = p->sport;
	}
}

static __always_inline int forward(CTX *ctx, struct packet *p, const struct route *route,
				   const struct backend *backend)
{
	if (is_nat(route->forward))
		return nat_send(ctx, p, &route->to, &route->hop, route->hide_source, backend);
	if (is_tunnel(route->forward))
		return backend ? encapsulate(ctx, p, backend, &route->hop) : REASON_INTERNAL;
	if (route->forward == FORWARD_DSR)
		return frame_build(ctx, p, &route->hop, 0, 0, eth_proto_of(p->family));
	return REASON_INTERNAL;
}

#endif
