// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The packet walk: parse -> service -> guard -> flow -> select -> forward -> out.
 *
 * A step returns 0 to go on or an enum reason.  Only balancer() turns a reason
 * into an XDP action, and counts it, once, at `out`:
 *   up to REASON_NOT_VIP   XDP_PASS, the packet untouched
 *   from REASON_MALFORMED  XDP_DROP
 *   0                      XDP_TX, or XDP_REDIRECT to the backend's interface
 */
#include "abi.h"
#include "maps.h"
#include "packet.h"
#include "parse.h"
#include "service.h"
#include "guard.h"
#include "flow.h"
#include "select.h"
#include "forward.h"

/* A recorded flow stays where it is; any other is picked for and recorded. */
static __always_inline int find_backend(const struct packet *p, const struct service *service,
					struct backend **backend)
{
	struct backend_counters *counters;
	struct flow flow = {};
	__u32 id;

	flow_find(p, service, &flow);
	if (!flow.bucket)
		return REASON_INTERNAL;
	if (flow.way < FLOW_WAYS) {
		id = slot_backend(flow.word);
		*backend = backends.lookup(&id);
		if (*backend && flow_stands(p, &flow, *backend)) {
			counters = backend_counters_of(id);
			flow_refresh(p, service, &flow, counters);
			goto count;
		}
	}
	id = select_backend(p, service, backend);
	if (!id)
		return REASON_NO_BACKEND;
	counters = backend_counters_of(id);
	/* The last packets of a connection that nobody knows open nothing. */
	if (!(p->tcp_flags & (TCP_FIN | TCP_RST))) {
		if (!flow_record(&flow, id))
			count_not_recorded(service->id);
		else if (counters)
			counters->opened++;
	}
count:
	if (counters) {
		counters->packets++;
		counters->bytes += p->len;
	}
	return 0;
}

int balancer(struct xdp_md *ctx)
{
	struct service *service = NULL;
	struct backend *backend = NULL;
	struct packet p = {};
	int reason;

	reason = parse(ctx, &p);
	if (reason)
		goto out;
	reason = service_find(&p, &service);
	if (reason)
		goto out;
	reason = guard(ctx, &p);
	if (reason)
		goto out;
	reason = find_backend(&p, service, &backend);
	if (reason)
		goto out;
	reason = forward(ctx, &p, backend);
out:
	if (reason) {
		count_reason(service ? service->id : 0, reason);
		return reason < REASON_DROP ? XDP_PASS : XDP_DROP;
	}
	if (backend->ifindex)
		return bpf_redirect(backend->ifindex, 0);
	return XDP_TX;
}
