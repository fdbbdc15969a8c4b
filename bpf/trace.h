/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Live events, for `lbctl trace`.  While nobody traces, they cost one load. */
#ifndef STEELYARD_TRACE_H
#define STEELYARD_TRACE_H

#include "ctx.h"
#include "maps.h"
#include "packet.h"
#include "scratch.h"

struct trace_fields {
	__u32 service;
	__u32 backend;
	__u32 state;
	__u32 reason;
	__u32 waited_bytes;
	__u32 waited_us;
};

/* Both ends of a flow, as the client sees them. */
struct endpoints {
	const __be32 *client;
	const __be32 *vip;
	__be16 client_port;
	__be16 vip_port;
};

static __always_inline struct trace_control *trace_wants(__u32 kind, __u32 service)
{
	struct trace_control *control;
	__u32 zero = 0;

	control = trace.lookup(&zero);
	if (!control || !(control->kinds & (1u << kind)))
		return NULL;
	if (control->service && control->service != service)
		return NULL;
	if ((kind == EVENT_PACKET || kind == EVENT_REPLY) &&
	    bpf_get_prandom_u32() & control->sample)
		return NULL;
	return control;
}

static __always_inline void trace_event(const struct packet *p, const struct endpoints *endpoints,
					__u32 kind, const struct trace_fields *fields)
{
	struct trace_control *control = trace_wants(kind, fields->service);
	struct scratch *room;
	struct event *event;

	if (!control)
		return;
	room = scratch_room();
	if (!room)
		return;
	event = &room->event;
	event->time = bpf_ktime_get_ns();
	__builtin_memcpy(event->client, endpoints->client, sizeof(event->client));
	__builtin_memcpy(event->vip, endpoints->vip, sizeof(event->vip));
	event->client_port = endpoints->client_port;
	event->vip_port = endpoints->vip_port;
	event->service = fields->service;
	event->backend = fields->backend;
	event->len = p->len;
	event->kind = kind;
	event->reason = fields->reason;
	event->l4_proto = p->l4_proto;
	event->family = p->family;
	event->tcp_flags = p->tcp_flags;
	event->state = fields->state;
	event->waited_bytes = fields->waited_bytes;
	event->waited_us = fields->waited_us;
	if (events.ringbuf_output(event, sizeof(*event), 0))
		__sync_fetch_and_add(&control->lost, 1);
}

/* Emits an event about a packet of the client. */
static __always_inline void trace_client(const struct packet *p, __u32 kind,
					 const struct trace_fields *fields)
{
	struct endpoints endpoints = { p->saddr, p->daddr, p->sport, p->dport };

	trace_event(p, &endpoints, kind, fields);
}

#endif
