// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The packet walk: parse -> service -> guard -> flow -> select -> forward -> out.
 * A backend's packet (nat, fullnat): parse -> reply -> out.
 *
 * A step returns 0 to go on, or an enum reason.  Only balancer() turns a reason into a verdict, and
 * counts it once, at `out`:
 *   up to REASON_FRAGMENT   passed to the host, untouched
 *   from REASON_MALFORMED   dropped, or answered where the sender is due a reply
 *   0                       sent, by the interface that it came in by or by another one
 */
#include "abi.h"
#include "maps.h"
#include "ctx.h"
#include "packet.h"
#include "parse.h"
#include "service.h"
#include "guard.h"
#include "sources.h"
#include "limit.h"
#include "hold.h"
#include "challenge.h"
#include "flow.h"
#include "quic.h"
#include "zone.h"
#include "select.h"
#include "forward.h"
#include "wayback.h"
#include "reply.h"
#include "fragment.h"
#include "answer.h"
#include "trace.h"
#include "peer.h"

/* State of the walk of one packet from a client. */
struct walk {
	struct service *service;
	struct backend *backend;
	struct flow flow;
	struct route *route;
};

/* Updates a recorded flow from a packet of its client. */
static __always_inline void refresh(CTX *ctx, const struct packet *p, struct walk *walk,
				    struct backend_counters *counters)
{
	const struct service *service = walk->service;
	__u32 state = slot_state(walk->flow.at->word);
	bool is_proven = state != FLOW_EMBRYONIC || !is_nat(walk->backend->forward) ||
			 flow_is_proven(p, &walk->flow);
	__u32 next = slot_next_state(slot_base(state), p, is_proven);
	struct trace_fields fields = { .service = service->id, .backend = walk->route->backend };
	struct endpoints endpoints = { p->saddr, p->daddr, p->sport, p->dport };
	struct answer answer = {};
	struct flow_warm *warm;

	/* Through memory: the verifier would follow each way of computing `next` to the end. */
	walk->flow.at->next = next;
	step_ends();
	next = walk->flow.at->next;
	if (LB_WAITING && service->flags & SERVICE_F_WAITING &&
	    p->tcp_flags & (TCP_FIN | TCP_RST) && state != FLOW_EMBRYONIC) {
		warm = flow_warm_of(&walk->flow);
		if (warm && waiting_is_stray(p, warm)) {
			next = state;
			goto move;
		}
	}
	/* Most packets carry no request, and no request of their flow waits. */
	if (LB_WAITING && service->flags & SERVICE_F_WAITING && p->l4_proto == L4_TCP &&
	    is_proven && (p->payload_len || slot_awaits(state) || state == FLOW_EMBRYONIC)) {
		warm = flow_warm_of(&walk->flow);
		if (warm &&
		    waiting_client(ctx, p, warm, walk->route->backend, walk->flow.at->tag, state,
				   is_nat(walk->backend->forward), &answer) &&
		    slot_base(next) >= FLOW_ESTABLISHED && next != FLOW_ACKED)
			next |= FLOW_AWAITING;
		if (counters)
			counters->answers += answer.bytes != 0;
	}
move:
	state = flow_move(&walk->flow, next);
	if (state == FLOW_EMBRYONIC && next != state && slot_base(next) != FLOW_CLOSING)
		flow_write_cold(p, &endpoints, service->id, &walk->flow);
	flow_moved(&walk->flow, state, next, walk->route->backend, counters);
	fields.state = state;
	fields.waited_bytes = answer.bytes;
	fields.waited_us = answer.us;
	if (answer.bytes)
		trace_client(p, EVENT_ANSWER, &fields);
	else if (slot_base(next) == FLOW_CLOSING && slot_is_open(state))
		trace_client(p, EVENT_CLOSE, &fields);
	else
		trace_client(p, EVENT_PACKET, &fields);
}

/* Opens a flow from the ACK that answers a SYN cookie.  Its SYN opened none, so this is the
 * handshake.
 */
static __always_inline void open_acked(const struct packet *p, const struct walk *walk)
{
	struct backend_counters *counters = backend_counters_of(walk->route->backend);
	struct endpoints endpoints = { p->saddr, p->daddr, p->sport, p->dport };
	struct flow_warm *warm = flow_warm_of(&walk->flow);

	count_cookie(walk->service->id);
	flow_write_cold(p, &endpoints, walk->service->id, &walk->flow);
	if (LB_WAITING && walk->service->flags & SERVICE_F_WAITING && warm)
		waiting_open(p, warm, walk->route->backend, walk->flow.at->tag);
	if (counters)
		counters->established++;
}

static __always_inline void open_flow(const struct packet *p, const struct walk *walk)
{
	count_opened(walk->backend, walk->route->backend,
		     LB_COOKIES ? mask_equal(walk->route->answers_cookie, 0) & 1 : 1);
	if (LB_COOKIES && walk->route->answers_cookie) {
		open_acked(p, walk);
		return;
	}
	if (LB_WAITING && walk->service->flags & SERVICE_F_WAITING && p->tcp_flags & TCP_SYN)
		waiting_syn(walk->flow.at->tag);
}

/* nat, fullnat: is this a segment from the middle of a connection that we know nothing of?  Its
 * backend could only reset it, so we do, at once, as a router and IPVS would.  But in nat the rings
 * of maglev and source still lead to its backend, so there a connection survives the loss of the
 * balancer that knew it.
 */
static __always_inline bool is_unknown_connection(const struct packet *p,
						  const struct service *service)
{
	bool rings_lead = service->scheduler == SCHEDULER_MAGLEV ||
			  service->scheduler == SCHEDULER_SOURCE;

	if (!(LB_NAT || LB_FULLNAT) || p->l4_proto != L4_TCP || (LB_SYNC && p->from_peer) ||
	    (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
		return false;
	return service->forward == FORWARD_FULLNAT ||
	       (service->forward == FORWARD_NAT && !rings_lead);
}

static __always_inline __u32 first_state(const struct route *route)
{
	return LB_COOKIES ? mask_choose(mask_equal(route->answers_cookie, 0), FLOW_EMBRYONIC,
					FLOW_ACKED) :
			    FLOW_EMBRYONIC;
}

/* Picks a backend for a new flow and records the flow, unless new flows are held back. */
static __always_inline int pick(CTX *ctx, const struct packet *p, struct walk *walk)
{
	struct scratch *room = scratch_room();
	const struct service *service;
	struct trace_fields fields = {};
	int reason;

	if (!room)
		return REASON_INTERNAL;
	/* Copied to one place, wherever it was found: otherwise the verifier would follow the rest
	 * of the walk once for each place.
	 */
	room->picked = *walk->service;
	walk->service = &room->picked;
	service = walk->service;
	step_ends();
	fields.service = service->id;
	reason = guard_first(ctx, p);
	step_ends();
	if (reason)
		return reason;
	if (LB_GUARD && !begins_connection(p)) {
		walk->route->refusal = source_unlisted(p, service);
		step_ends();
		if (walk->route->refusal)
			return refusal_of(walk->route);
	}
	if (hold_is_on())
		return REASON_HELD;
	/* The last packets of an unknown connection open no flow. */
	walk->route->may_open = !(p->tcp_flags & (TCP_FIN | TCP_RST));
	if (LB_CHALLENGE && service->flags & SERVICE_F_CHALLENGE) {
		/* Through memory: the verifier would follow each of its results to the end. */
		walk->route->challenge = challenge_answered(p, service, walk->route);
		step_ends();
		if (walk->route->challenge)
			return walk->route->challenge == REASON_VERIFIED ? REASON_VERIFIED :
									   REASON_CHALLENGED;
	}
	if (is_unknown_connection(p, service)) {
		walk->route->tcp_reply = TCP_REPLY_RST_LIMITED;
		return REASON_NO_FLOW;
	}
	step_ends();
	if (LB_LIMITS && walk->route->may_open &&
	    service->limits & (SERVICE_LIMITS_NEW | SERVICE_LIMITS_HELD)) {
		walk->route->refusal = limit_new_flow(p, service);
		step_ends();
		if (walk->route->refusal)
			return REASON_LIMITED;
	}
	if (walk->route->may_open)
		flow_reserve(&walk->flow);
	step_ends();
	if (!walk->route->backend)
		walk->route->backend = select_backend(p, service,
						      select_scheduler(p, service, walk->flow.at,
								       walk->route->answers_cookie),
						      &walk->route->ring);
	step_ends();
	walk->backend = backends.lookup(&walk->route->backend);
	if (!walk->route->backend || !walk->backend) {
		if (hold_new(ctx, p, service))
			return REASON_HELD;
		walk->route->sends_reset = (service->flags & SERVICE_F_RESET) != 0;
		return REASON_NO_BACKEND;
	}
	fields.backend = walk->route->backend;
	if (!walk->route->may_open) {
		walk->flow.at->way = FLOW_WAYS;
		return is_nat(walk->backend->forward) ? REASON_NO_FLOW : 0;
	}
	if (!flow_record(&walk->flow, walk->route->backend, first_state(walk->route))) {
		count_not_recorded(service->id);
		return is_nat(walk->backend->forward) ? REASON_NO_ROOM : 0;
	}
	open_flow(p, walk);
	trace_client(p, EVENT_PICK, &fields);
	return 0;
}

/* Finds the backend of an ICMP error: the one that the flow it is about goes to. */
static __always_inline int find_quoted(const struct packet *p, struct walk *walk)
{
	if (flow_is_recorded(&walk->flow)) {
		walk->route->backend = slot_backend(walk->flow.at->word);
	} else {
		/* With maglev, the packet's hash alone names its backend, as for the flow. */
		if (walk->service->scheduler != SCHEDULER_MAGLEV)
			return REASON_NO_FLOW;
		walk->route->backend =
			select_backend(p, walk->service, SCHEDULER_MAGLEV, &walk->route->ring);
	}
	walk->backend = backends.lookup(&walk->route->backend);
	if (!walk->route->backend || !walk->backend || !(walk->backend->flags & BACKEND_F_ALIVE))
		return REASON_NO_FLOW;
	if (is_nat(walk->backend->forward) && !flow_is_recorded(&walk->flow))
		return REASON_NO_FLOW;
	return 0;
}

/* While new clients are challenged: does the packet possibly answer a challenge?  Then an old
 * record with the same ports does not decide where it goes.
 */
static __always_inline bool may_answer_challenge(const struct packet *p, const struct walk *walk)
{
	__u32 state = slot_base(slot_state(walk->flow.at->word));

	if (LB_COOKIES && walk->route->answers_cookie)
		return true;
	return LB_CHALLENGE && walk->service->flags & SERVICE_F_CHALLENGE &&
	       p->tcp_flags & TCP_RST && (state == FLOW_EMBRYONIC || state == FLOW_CLOSING) &&
	       !source_is_verified(p);
}

/* Packets that are never passed on to a peer: a RST where clients are challenged, because no other
 * balancer knows what we challenged them with, and an ACK that answers a SYN cookie, because it
 * begins a connection.
 */
static __always_inline bool is_not_for_peers(const struct packet *p, const struct walk *walk)
{
	if (LB_COOKIES && walk->route->answers_cookie)
		return true;
	return LB_CHALLENGE && walk->service->flags & SERVICE_F_CHALLENGE && p->tcp_flags & TCP_RST;
}

/* May the packet answer a SYN cookie?  Cookies are not checked for established flows; but where a
 * flow is over, or was never established, the packet may begin a new connection with the same
 * ports.
 */
static __always_inline bool may_answer_cookie(const struct walk *walk)
{
	__u32 state = slot_base(slot_state(walk->flow.at->word));

	return !flow_is_recorded(&walk->flow) || state == FLOW_EMBRYONIC || state == FLOW_CLOSING;
}

/* Finds the backend that the QUIC packet itself names, if that backend is alive. */
static __always_inline void find_quic_backend(CTX *ctx, const struct packet *p, struct walk *walk)
{
	if (!LB_QUIC)
		return;
	walk->route->quic_backend = 0;
	if (!walk->service->quic_id_len)
		return;
	walk->route->quic_backend = quic_backend(ctx, p, walk->service);
	step_ends();
	if (walk->route->quic_backend) {
		walk->backend = backends.lookup(&walk->route->quic_backend);
		if (!walk->backend || !(walk->backend->flags & BACKEND_F_ALIVE))
			walk->route->quic_backend = 0;
	}
	step_ends();
}

static __always_inline bool is_at_quic_backend(const struct route *route)
{
	return !LB_QUIC || !route->quic_backend || route->quic_backend == route->backend;
}

/* Finds the packet's backend: that of its recorded flow, else a new pick, which is recorded. */
static __always_inline int find_backend(CTX *ctx, const struct packet *p, struct walk *walk)
{
	struct backend_counters *counters;
	int reason;

	flow_find(flow_hash(p, walk->service), &walk->flow);
	if (!walk->flow.bucket)
		return REASON_INTERNAL;
	if (p->quote_off)
		return find_quoted(p, walk);
	if (LB_COOKIES && may_answer_cookie(walk)) {
		/* Through memory, as above. */
		walk->route->answers_cookie = challenge_cookie(p, walk->service);
		step_ends();
	}
	find_quic_backend(ctx, p, walk);
	if (flow_is_recorded(&walk->flow) && !may_answer_challenge(p, walk)) {
		if (slot_is_reset(walk->flow.at->word) && !(p->tcp_flags & TCP_SYN)) {
			walk->route->tcp_reply = TCP_REPLY_RST;
			return REASON_NO_FLOW;
		}
		walk->route->backend = slot_backend(walk->flow.at->word);
		walk->backend = backends.lookup(&walk->route->backend);
		if (walk->backend && flow_decides(p, &walk->flow, walk->backend) &&
		    is_at_quic_backend(walk->route)) {
			counters = backend_counters_of(walk->route->backend);
			refresh(ctx, p, walk, counters);
			goto count;
		}
	}
	if (LB_SYNC && !flow_is_recorded(&walk->flow) && !is_not_for_peers(p, walk)) {
		walk->backend = peer_for(p, &walk->flow);
		if (walk->backend)
			return 0;
		step_ends();
	}
	walk->route->backend = LB_QUIC ? walk->route->quic_backend : 0;
	reason = pick(ctx, p, walk);
	if (reason)
		return reason;
	counters = backend_counters_of(walk->route->backend);
count:
	if (counters) {
		counters->packets++;
		counters->bytes += p->len;
	}
	return 0;
}

/* Prepares what nat and fullnat need: the way back and the addresses to rewrite to. */
static __always_inline int bind(CTX *ctx, const struct packet *p, struct walk *walk)
{
	struct flow_warm *warm;

	if (!flow_is_recorded(&walk->flow))
		return REASON_NO_FLOW;
	warm = flow_warm_of(&walk->flow);
	if (!warm)
		return REASON_INTERNAL;
	if (!p->quote_off && !(LB_SYNC && p->from_peer && !walk->flow.at->is_new))
		way_back_remember(ctx, p, warm);
	if (walk->flow.at->is_new)
		warm->ack = 0; /* the server has sent nothing yet: flow_is_proven() */
	route_rewrite(walk->route, p, walk->backend);
	if (LB_FULLNAT && walk->backend->forward == FORWARD_FULLNAT)
		return nat_bind(p, &walk->flow, warm, walk->route);
	return 0;
}

static __always_inline int from_client(CTX *ctx, struct packet *p, struct walk *walk)
{
	int reason;

	if (LB_GUARD && p->is_blocked && block_holds(walk->service))
		return REASON_BLOCKED;
	reason = guard(ctx, p);
	step_ends();
	if (reason)
		return reason;
	if (LB_GUARD && begins_connection(p)) {
		walk->route->refusal = source_unlisted(p, walk->service);
		step_ends();
		if (walk->route->refusal)
			return refusal_of(walk->route);
	}
	if (LB_LIMITS && walk->service->limits & SERVICE_LIMITS_PACKETS) {
		walk->route->refusal = limit_packet(p, walk->service);
		step_ends();
		if (walk->route->refusal)
			return REASON_LIMITED;
	}
	if (LB_CHALLENGE && walk->service->flags & SERVICE_F_CHALLENGE) {
		walk->route->challenge = challenge_syn(p, walk->service, walk->route);
		step_ends();
		if (walk->route->challenge)
			return REASON_CHALLENGED;
	}
	reason = find_backend(ctx, p, walk);
	step_ends();
	if (reason)
		return reason;
	route_to(walk->route, walk->backend);
	return is_nat(walk->backend->forward) ? bind(ctx, p, walk) : 0;
}

static __always_inline int from_backend(CTX *ctx, struct packet *p, struct scratch *room)
{
	struct reply reply = { .flow.at = &room->place, .route = &room->route };

	return reply_find(ctx, p, &reply);
}

/* Decides where the packet goes.  Returns 0, with the route filled in, or a reason. */
static __always_inline int find_route(CTX *ctx, struct packet *p, struct scratch *room,
				      struct walk *walk)
{
	int reason = REASON_NOT_VIP;

	if (p->is_later_fragment)
		reason = fragment_follow(ctx, p, room, &walk->backend);
	if (reason != REASON_NOT_VIP)
		return reason;
	reason = service_find(p, room, &walk->service);
	step_ends();
	if (!reason) {
		walk->route->service = walk->service->id;
		return from_client(ctx, p, walk);
	}
	if ((LB_NAT || LB_FULLNAT) && reason == REASON_NOT_VIP && !p->is_later_fragment)
		return from_backend(ctx, p, room);
	return reason;
}

static __always_inline void trace_drop(const struct packet *p, const struct route *route,
				       int reason)
{
	struct trace_fields fields = { .service = route->service,
				       .backend = route->backend,
				       .reason = reason };

	trace_client(p, EVENT_DROP, &fields);
}

int balancer(CTX *ctx)
{
	struct scratch *room = scratch_room();
	struct walk walk = {};
	bool replied = false;
	struct route *route;
	struct packet *p;
	int reason;

	if (!room)
		return VERDICT_PASS;
	p = &room->packet;
	route = &room->route;
	__builtin_memset(p, 0, sizeof(*p));
	route->service = 0;
	route->backend = 0;
	route->tcp_reply = TCP_REPLY_NONE;
	if (LB_COOKIES)
		route->answers_cookie = 0;
	walk.route = route;
	walk.flow.at = &room->place;
	ctx_pull(ctx, HEADERS_MAX);
	if (LB_SYNC) {
		struct peer_key key;

		reason = peer_unwrap(ctx, p, &key);
		/* Or the verifier would keep these packets apart from all others, by what is left on
		 * the stack, and walk the rest of the program twice.
		 */
		if (p->from_peer) {
			__builtin_memset(&key, 0, sizeof(key));
			asm volatile("" : : "r"(&key) : "memory");
		}
		step_ends();
		if (reason)
			goto out;
	}
	reason = parse(ctx, p);
	step_ends();
	if (reason)
		goto out;
	if (LB_GUARD)
		source_look_up(p, room);
	reason = find_route(ctx, p, room, &walk);
	step_ends();
	if (reason)
		goto out;
	reason = forward(ctx, p, route, walk.backend);
	if (reason == REASON_TOO_BIG)
		route->mtu = walk.backend ? answer_mtu(walk.backend) : 0;
	if (!reason && p->is_fragment && !p->is_later_fragment)
		fragment_remember(p, room);
out:
	if (reason) {
		/* Through memory: the verifier would follow each reason to the end. */
		route->reason = reason;
		step_ends();
		reason = route->reason;
		if (reason >= REASON_DROP) {
			trace_drop(p, route, reason);
			replied = answer(ctx, p, route, reason);
		}
		count_reason(route->service, reason, replied);
		if (reason < REASON_DROP && !(LB_SYNC && p->from_peer))
			return VERDICT_PASS;
		if (!replied)
			return VERDICT_DROP;
		return ctx_send(ctx, 0);
	}
	return ctx_send(ctx, route->ifindex);
}
