/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* nat and fullnat: sends a backend's packet back to the client, as from the VIP, the way that the
 * client's packets came.
 *
 * In fullnat, the backend's address and port and the destination port name the NAT slot, and the
 * slot names the flow.  In nat, the backend's address and port name the service, and together with
 * the client's they name the flow.  A packet without a flow is the host's own.  But where a backend
 * sends to a port that it has had a flow with, and that flow is over, it is answered with RST: the
 * host's stack does not know such connections.
 */
#ifndef STEELYARD_REPLY_H
#define STEELYARD_REPLY_H

#include "flow.h"
#include "forward.h"
#include "guard.h"
#include "nat.h"
#include "service.h"
#include "trace.h"

/* A packet from a backend to the client. */
struct reply {
	struct flow flow;
	struct route *route;
};

static __always_inline bool is_address(__u8 family, const __be32 *a, const __be32 *b)
{
	if (!LB_IPV6 || family == 4)
		return a[0] == b[0];
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

/* A backend's packet for a flow that is over.  Only the backend that had the flow, by its address
 * and port, gets a reply, so that nobody can make us send to a third party.
 */
static __always_inline int reply_to_ended_flow(const struct packet *p, struct reply *reply,
					       __u32 service)
{
	if (p->quote_off)
		return REASON_NOT_VIP;
	reply->route->service = service;
	reply->route->tcp_reply = TCP_REPLY_RST;
	return REASON_NO_FLOW;
}

/* Returns 0, or why there is no flow. */
static __always_inline int reply_of_fullnat(const struct packet *p, struct reply *reply)
{
	__u32 port = bswap16(p->dport), number = p->nat_source - 1, index = 0, bucket, id;
	struct backend *backend;
	__u16 *blocks = reply->route->nat_blocks;
	struct nat_slot *slot;
	__u64 word;

	if (port < LB_NAT_FIRST_PORT || port >= LB_NAT_FIRST_PORT + LB_NAT_PORTS)
		return REASON_NOT_VIP;
	if (!nat_blocks_find(p->family, p->saddr, p->sport, p->l4_proto, blocks))
		return REASON_NOT_VIP;
	index = nat_index(blocks, number, port - LB_NAT_FIRST_PORT);
	slot = nat_slots.lookup(&index);
	if (!slot || !slot->owner || slot->l4_proto != p->l4_proto || slot->source != number)
		return REASON_NOT_VIP;
	index = (slot->owner >> 32) - 1;
	bucket = index / FLOW_WAYS;
	reply->flow.at->index = bucket;
	reply->flow.at->way = index % FLOW_WAYS;
	reply->flow.at->tag = slot->owner;
	reply->flow.at->now = flow_clock();
	reply->flow.bucket = flows.lookup(&bucket);
	if (!reply->flow.bucket)
		return REASON_NOT_VIP;
	id = slot->backend;
	backend = backends.lookup(&id);
	if (!backend || !is_address(p->family, p->saddr, backend->addr) ||
	    p->sport != (backend->port ? backend->port : slot->vip_port))
		return REASON_NOT_VIP;
	word = reply->flow.bucket->slot[index % FLOW_WAYS];
	if (slot_tag(word) != reply->flow.at->tag || !slot_state(word) || slot_backend(word) != id)
		return reply_to_ended_flow(p, reply, slot->service);
	reply->flow.at->word = word;
	reply->route->service = slot->service;
	reply->route->backend = id;
	__builtin_memcpy(reply->route->to.saddr, slot->vip, sizeof(reply->route->to.saddr));
	__builtin_memcpy(reply->route->to.daddr, slot->client, sizeof(reply->route->to.daddr));
	reply->route->to.sport = slot->vip_port;
	reply->route->to.dport = slot->client_port;
	return 0;
}

static __always_inline int reply_of_nat(const struct packet *p, struct reply *reply)
{
	struct origin *origin = origin_at(p->family, p->saddr, p->sport, p->l4_proto);
	__be16 port;
	__u64 hash;

	if ((!origin || !origin->backend) && (LB_ANY_PORT || LB_RANGES))
		origin = origin_at(p->family, p->saddr, 0, p->l4_proto);
	if (!origin || !origin->backend)
		return REASON_NOT_VIP;
	port = origin->port ? origin->port : p->sport;
	hash = tuple_hash(p->family, p->daddr, ports_word(p->dport, port),
			  LB_FLOW_KEY ^ (__u64)origin->flow_salt * PICK_MUL0, LB_FLOW_MUL0,
			  LB_FLOW_MUL1);
	flow_find(hash, &reply->flow);
	if (!reply->flow.bucket || !flow_is_recorded(&reply->flow))
		return REASON_NOT_VIP;
	if (slot_is_reset(reply->flow.at->word))
		return reply_to_ended_flow(p, reply, origin->service);
	if (slot_backend(reply->flow.at->word) != origin->backend)
		return REASON_NOT_VIP;
	reply->route->service = origin->service;
	reply->route->backend = origin->backend;
	__builtin_memcpy(reply->route->to.saddr, origin->vip, sizeof(reply->route->to.saddr));
	__builtin_memcpy(reply->route->to.daddr, p->daddr, sizeof(reply->route->to.daddr));
	reply->route->to.sport = port;
	reply->route->to.dport = p->dport;
	return 0;
}

static __always_inline void reply_trace(const struct packet *p, const struct endpoints *endpoints,
					const struct reply *reply, __u32 state, __u32 next,
					const struct answer *answer)
{
	struct trace_fields fields = { .service = reply->route->service,
				       .backend = reply->route->backend,
				       .state = state,
				       .waited_bytes = answer->bytes,
				       .waited_us = answer->us };
	__u32 kind = EVENT_REPLY;

	if (answer->bytes)
		kind = EVENT_ANSWER;
	else if (slot_base(next) == FLOW_CLOSING && slot_is_open(state))
		kind = EVENT_CLOSE;
	trace_event(p, endpoints, kind, &fields);
}

/* Moves the flow on by a packet of its backend. */
static __always_inline void reply_refresh(CTX *ctx, const struct packet *p, struct reply *reply,
					  struct flow_warm *warm)
{
	struct backend_counters *counters = backend_counters_of(reply->route->backend);
	__u32 state = slot_state(reply->flow.at->word), next;
	struct rewrite *to = &reply->route->to;
	struct endpoints endpoints = { to->daddr, to->saddr, to->dport, to->sport };
	struct answer answer = {};

	next = slot_replied_state(slot_base(state), p);
	if (state == FLOW_EMBRYONIC && p->l4_proto == L4_TCP)
		warm->ack = p->seq + p->payload_len + !!(p->tcp_flags & (TCP_SYN | TCP_FIN));
	/* Through memory: the verifier would follow each way of computing `next` to the end. */
	reply->flow.at->next = next;
	step_ends();
	next = reply->flow.at->next;
	if (LB_WAITING && slot_awaits(state) && slot_base(next) >= FLOW_ESTABLISHED &&
	    waiting_server(ctx, p, warm, reply->route->backend, reply->flow.at->tag, state,
			   &answer))
		next |= FLOW_AWAITING;
	state = flow_move(&reply->flow, next);
	if (state == FLOW_EMBRYONIC && next != state && slot_base(next) != FLOW_CLOSING)
		flow_write_cold(p, &endpoints, reply->route->service, &reply->flow);
	flow_moved(&reply->flow, state, next, reply->route->backend, counters);
	if (counters) {
		counters->reply_packets++;
		counters->reply_bytes += p->len;
		counters->answers += answer.bytes != 0;
	}
	reply_trace(p, &endpoints, reply, state, next, &answer);
}

/* Returns 0 if the packet is a backend's, with its route filled in; else a reason. */
static __always_inline int reply_find(CTX *ctx, struct packet *p, struct reply *reply)
{
	struct flow_warm *warm;
	int reason, no_flow;

	if (LB_FULLNAT && p->nat_source)
		no_flow = reply_of_fullnat(p, reply);
	else if (LB_NAT && !p->is_vip && p->may_be_reply)
		no_flow = reply_of_nat(p, reply);
	else
		return REASON_NOT_VIP;
	if (no_flow == REASON_NOT_VIP)
		return no_flow;
	step_ends();
	reason = guard(ctx, p);
	step_ends();
	if (reason)
		return reason;
	if (no_flow)
		return no_flow;
	warm = flow_warm_of(&reply->flow);
	if (!warm)
		return REASON_INTERNAL;
	if (!p->quote_off)
		reply_refresh(ctx, p, reply, warm);
	route_back(reply->route, warm);
	return 0;
}

#endif
