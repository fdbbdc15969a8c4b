// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The packet walk: parse -> service -> guard -> flow -> select -> forward -> out.
 * A backend's answer (nat, fullnat): parse -> reply -> out.
 *
 * A step returns 0 to go on or an enum reason.  Only balancer() turns a reason
 * into a verdict, and counts it, once, at `out`:
 *   up to REASON_FRAGMENT   passed, the packet untouched
 *   from REASON_MALFORMED   dropped; or answered, where that is somebody's due
 *   0                       sent, out where it came in or by another interface
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

/* The walk of one packet of a client. */
struct walk {
	struct service *service;
	struct backend *backend;
	struct flow flow;
	struct route *route;
};

/* What the client's packet does to its recorded flow. */
static __always_inline void refresh(CTX *ctx, const struct packet *p, struct walk *walk,
				    struct backend_counters *counters)
{
	const struct service *service = walk->service;
	__u32 state = slot_state(walk->flow.at->word);
	bool is_proven = state != FLOW_EMBRYONIC || !is_nat(walk->backend->forward) ||
			 flow_is_proven(p, &walk->flow);
	__u32 next = slot_next_state(slot_base(state), p, is_proven);
	struct happening what = { .service = service->id, .backend = walk->route->backend };
	struct ends ends = { p->saddr, p->daddr, p->sport, p->dport };
	struct answer answer = {};
	struct flow_warm *warm;

	/* Through memory: the verifier would follow each way to `next` to the end. */
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
	/* Most packets neither ask nor are waited for. */
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
		flow_write_cold(p, &ends, service->id, &walk->flow);
	flow_moved(&walk->flow, state, next, walk->route->backend, counters);
	what.state = state;
	what.waited_bytes = answer.bytes;
	what.waited_us = answer.us;
	if (answer.bytes)
		trace_client(p, EVENT_ANSWER, &what);
	else if (slot_base(next) == FLOW_CLOSING && slot_is_open(state))
		trace_client(p, EVENT_CLOSE, &what);
	else
		trace_client(p, EVENT_PACKET, &what);
}

/* Who answers a cookie ends a handshake, of which the SYN has opened no flow. */
static __always_inline void open_acked(const struct packet *p, const struct walk *walk)
{
	struct backend_counters *counters = backend_counters_of(walk->route->backend);
	struct ends ends = { p->saddr, p->daddr, p->sport, p->dport };
	struct flow_warm *warm = flow_warm_of(&walk->flow);

	count_cookie(walk->service->id);
	flow_write_cold(p, &ends, walk->service->id, &walk->flow);
	if (LB_WAITING && walk->service->flags & SERVICE_F_WAITING && warm)
		waiting_open(p, warm, walk->route->backend, walk->flow.at->tag);
	if (counters)
		counters->established++;
}

static __always_inline void open_flow(const struct packet *p, const struct walk *walk)
{
	count_opened(walk->backend, walk->route->backend,
		     LB_COOKIES ? mask_equal(walk->route->begins, 0) & 1 : 1);
	if (LB_COOKIES && walk->route->begins) {
		open_acked(p, walk);
		return;
	}
	if (LB_WAITING && walk->service->flags & SERVICE_F_WAITING && p->tcp_flags & TCP_SYN)
		waiting_syn(walk->flow.at->tag);
}

/* nat, fullnat: a segment in the middle of a connection of which nothing is known can only
 * be reset by a backend, as a router and IPVS would do at once.  But in nat the rings of
 * maglev and source tell where it is, so a connection outlives the balancer that knew it.
 */
static __always_inline bool is_of_nobody(const struct packet *p, const struct service *service)
{
	bool tells = service->scheduler == SCHEDULER_MAGLEV ||
		     service->scheduler == SCHEDULER_SOURCE;

	if (!(LB_NAT || LB_FULLNAT) || p->l4_proto != L4_TCP || (LB_SYNC && p->from_peer) ||
	    (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
		return false;
	return service->forward == FORWARD_FULLNAT || (service->forward == FORWARD_NAT && !tells);
}

static __always_inline __u32 first_state(const struct route *route)
{
	return LB_COOKIES ? mask_choose(mask_equal(route->begins, 0), FLOW_EMBRYONIC, FLOW_ACKED) :
			    FLOW_EMBRYONIC;
}

/* A backend for a new flow, and its record, unless new flows are held back. */
static __always_inline int pick(CTX *ctx, const struct packet *p, struct walk *walk)
{
	struct scratch *room = scratch_room();
	const struct service *service;
	struct happening what = {};
	int reason;

	if (!room)
		return REASON_INTERNAL;
	/* In one place, wherever it was found: the verifier would follow all that comes for each. */
	room->picked = *walk->service;
	walk->service = &room->picked;
	service = walk->service;
	step_ends();
	what.service = service->id;
	reason = guard_first(ctx, p);
	step_ends();
	if (reason)
		return reason;
	if (LB_GUARD && !begins_connection(p)) {
		walk->route->refused = source_unlisted(p, service);
		step_ends();
		if (walk->route->refused)
			return refusal_of(walk->route);
	}
	if (hold_is_on())
		return REASON_HELD;
	/* The last packets of a connection that nobody knows open nothing. */
	walk->route->opens = !(p->tcp_flags & (TCP_FIN | TCP_RST));
	if (LB_CHALLENGE && service->flags & SERVICE_F_CHALLENGE) {
		/* Through memory: the verifier would follow each of its ways to the end. */
		walk->route->challenge = challenge_answered(p, service, walk->route);
		step_ends();
		if (walk->route->challenge)
			return walk->route->challenge == REASON_VERIFIED ? REASON_VERIFIED :
									   REASON_CHALLENGED;
	}
	if (is_of_nobody(p, service)) {
		walk->route->is_over = OVER_UNKNOWN;
		return REASON_NO_FLOW;
	}
	step_ends();
	if (LB_LIMITS && walk->route->opens &&
	    service->limits & (SERVICE_LIMITS_NEW | SERVICE_LIMITS_HELD)) {
		walk->route->refused = limit_new_flow(p, service);
		step_ends();
		if (walk->route->refused)
			return REASON_LIMITED;
	}
	if (walk->route->opens)
		flow_reserve(&walk->flow);
	step_ends();
	if (!walk->route->backend)
		walk->route->backend = select_backend(p, service,
						      select_scheduler(p, service, walk->flow.at,
								       walk->route->begins),
						      &walk->route->ring);
	step_ends();
	walk->backend = backends.lookup(&walk->route->backend);
	if (!walk->route->backend || !walk->backend) {
		walk->route->resets = (service->flags & SERVICE_F_RESET) != 0;
		return REASON_NO_BACKEND;
	}
	what.backend = walk->route->backend;
	if (!walk->route->opens) {
		walk->flow.at->way = FLOW_WAYS;
		return is_nat(walk->backend->forward) ? REASON_NO_FLOW : 0;
	}
	if (!flow_record(&walk->flow, walk->route->backend, first_state(walk->route))) {
		count_not_recorded(service->id);
		return is_nat(walk->backend->forward) ? REASON_NO_ROOM : 0;
	}
	open_flow(p, walk);
	trace_client(p, EVENT_PICK, &what);
	return 0;
}

/* An ICMP error goes where the flow is that it is about. */
static __always_inline int find_quoted(const struct packet *p, struct walk *walk)
{
	if (flow_is_recorded(&walk->flow)) {
		walk->route->backend = slot_backend(walk->flow.at->word);
	} else {
		/* Unless the packet itself tells, as it would have told then. */
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

/* While new clients are challenged: what may answer a challenge does not go with a record of
 * before.
 */
static __always_inline bool may_answer(const struct packet *p, const struct walk *walk)
{
	__u32 state = slot_base(slot_state(walk->flow.at->word));

	if (LB_COOKIES && walk->route->begins)
		return true;
	return LB_CHALLENGE && walk->service->flags & SERVICE_F_CHALLENGE &&
	       p->tcp_flags & TCP_RST && (state == FLOW_EMBRYONIC || state == FLOW_CLOSING) &&
	       !source_is_verified(p);
}

/* A RST where clients are challenged: no other balancer knows what they were asked.  And who
 * begins a connection belongs to nobody so far.
 */
static __always_inline bool is_for_us(const struct packet *p, const struct walk *walk)
{
	if (LB_COOKIES && walk->route->begins)
		return true;
	return LB_CHALLENGE && walk->service->flags & SERVICE_F_CHALLENGE && p->tcp_flags & TCP_RST;
}

/* A flow that is established is not asked for a cookie; one that is over, or never began, may be of
 * a connection with the same ports.
 */
static __always_inline bool may_begin(const struct walk *walk)
{
	__u32 state = slot_base(slot_state(walk->flow.at->word));

	return !flow_is_recorded(&walk->flow) || state == FLOW_EMBRYONIC || state == FLOW_CLOSING;
}

/* The backend that a QUIC packet names itself, if that is alive. */
static __always_inline void find_named(CTX *ctx, const struct packet *p, struct walk *walk)
{
	if (!LB_QUIC)
		return;
	walk->route->named = 0;
	if (!walk->service->quic_id_len)
		return;
	walk->route->named = quic_backend(ctx, p, walk->service);
	step_ends();
	if (walk->route->named) {
		walk->backend = backends.lookup(&walk->route->named);
		if (!walk->backend || !(walk->backend->flags & BACKEND_F_ALIVE))
			walk->route->named = 0;
	}
	step_ends();
}

static __always_inline bool is_not_elsewhere(const struct route *route)
{
	return !LB_QUIC || !route->named || route->named == route->backend;
}

/* A recorded flow stays where it is; any other is picked for and recorded. */
static __always_inline int find_backend(CTX *ctx, const struct packet *p, struct walk *walk)
{
	struct backend_counters *counters;
	int reason;

	flow_find(flow_hash(p, walk->service), &walk->flow);
	if (!walk->flow.bucket)
		return REASON_INTERNAL;
	if (p->quote_off)
		return find_quoted(p, walk);
	if (LB_COOKIES && may_begin(walk)) {
		/* Through memory, as above. */
		walk->route->begins = challenge_cookie(p, walk->service);
		step_ends();
	}
	find_named(ctx, p, walk);
	if (flow_is_recorded(&walk->flow) && !may_answer(p, walk)) {
		if (slot_is_reset(walk->flow.at->word) && !(p->tcp_flags & TCP_SYN)) {
			walk->route->is_over = OVER_KNOWN;
			return REASON_NO_FLOW;
		}
		walk->route->backend = slot_backend(walk->flow.at->word);
		walk->backend = backends.lookup(&walk->route->backend);
		if (walk->backend && flow_stands(p, &walk->flow, walk->backend) &&
		    is_not_elsewhere(walk->route)) {
			counters = backend_counters_of(walk->route->backend);
			refresh(ctx, p, walk, counters);
			goto count;
		}
	}
	if (LB_SYNC && !flow_is_recorded(&walk->flow) && !is_for_us(p, walk)) {
		walk->backend = peer_for(p, &walk->flow);
		if (walk->backend)
			return 0;
		step_ends();
	}
	walk->route->backend = LB_QUIC ? walk->route->named : 0;
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

/* What nat and fullnat need to know of the flow. */
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
		warm->ack = 0; /* the server has said nothing so far: flow_is_proven() */
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
		walk->route->refused = source_unlisted(p, walk->service);
		step_ends();
		if (walk->route->refused)
			return refusal_of(walk->route);
	}
	if (LB_LIMITS && walk->service->limits & SERVICE_LIMITS_PACKETS) {
		walk->route->refused = limit_packet(p, walk->service);
		step_ends();
		if (walk->route->refused)
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

/* Where the packet goes: 0 and its route, or a reason. */
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
	struct happening what = { .service = route->service,
				  .backend = route->backend,
				  .reason = reason };

	trace_client(p, EVENT_DROP, &what);
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
	route->is_over = OVER_UNTOLD;
	if (LB_COOKIES)
		route->begins = 0;
	walk.route = route;
	walk.flow.at = &room->place;
	ctx_pull(ctx, HEADERS_MAX);
	if (LB_SYNC) {
		reason = peer_unwrap(ctx, p);
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
