/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Step 2: which service is the packet for?  Exact port first, then any port. */
#ifndef STEELYARD_SERVICE_H
#define STEELYARD_SERVICE_H

#include "maps.h"
#include "packet.h"

/* The port and the protocol of a key as one word, as they lie in memory. */
static __always_inline __u32 key_tail(__be16 port, __u8 l4_proto)
{
	_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "as on x86-64 and arm64");
	return port | (__u32)l4_proto << 16;
}

/* A key is stored in whole words, because the map's hash loads words: a load
 * that spans narrower stores waits until they have left the store buffer, which
 * was a third of the time of an established packet.
 */
static __always_inline struct service *service_at(const struct packet *p, __be16 port,
						  __u8 l4_proto)
{
	if (!LB_IPV6 || p->family == 4) {
		union {
			struct service_key4 key;
			__u64 word;
		} at = { .word = (__u64)key_tail(port, l4_proto) << 32 | p->daddr[0] };

		return services4.lookup(&at.key);
	} else {
		union {
			struct service_key6 key;
			__u32 word[5];
		} at;

		__builtin_memcpy(at.word, p->daddr, sizeof(p->daddr));
		at.word[4] = key_tail(port, l4_proto);
		return services6.lookup(&at.key);
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
