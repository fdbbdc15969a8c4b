/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Step 2: which service is the packet for?  Exact port first, then any port. */
#ifndef STEELYARD_SERVICE_H
#define STEELYARD_SERVICE_H

#include "maps.h"
#include "packet.h"

static __always_inline struct service *service_at(const struct packet *p, __be16 port,
						  __u8 l4_proto)
{
	if (!LB_IPV6 || p->family == 4) {
		struct service_key4 key = {};

		key.vip = p->daddr[0];
		key.port = port;
		key.l4_proto = l4_proto;
		return services4.lookup(&key);
	} else {
		struct service_key6 key = {};

		__builtin_memcpy(key.vip, p->daddr, sizeof(key.vip));
		key.port = port;
		key.l4_proto = l4_proto;
		return services6.lookup(&key);
	}
}

static __always_inline int service_find(const struct packet *p, struct service **service)
{
	/* No ports to look at: only the address can tell whether it is ours. */
	if (p->is_later_fragment || p->has_extension) {
		if (!service_at(p, 0, 0))
			return REASON_NOT_VIP;
		return p->has_extension ? REASON_EXTENSION : REASON_FRAGMENT;
	}
	*service = service_at(p, p->dport, p->l4_proto);
	if (LB_ANY_PORT && !*service)
		*service = service_at(p, 0, p->l4_proto);
	return *service ? 0 : REASON_NOT_VIP;
}

#endif
