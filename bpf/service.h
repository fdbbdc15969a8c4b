/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Step 2: finds the service of the packet.  The exact port comes first, then a range with the port,
 * then any port.
 */
#ifndef STEELYARD_SERVICE_H
#define STEELYARD_SERVICE_H

#include "filter.h"
#include "hash.h"
#include "maps.h"
#include "packet.h"
#include "scratch.h"

/* The port and the protocol of a key as one word, as they lie in memory. */
static __always_inline __u32 key_tail(__be16 port, __u8 l4_proto)
{
	_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "as on x86-64 and arm64");
	return port | (__u32)l4_proto << 16;
}

/* Keeps the compiler from merging the two calls that end two branches into one.  Then the kernel
 * would no longer know which map the call is for: it would not inline the lookup, and the indirect
 * call costs 12 ns with retpolines.
 */
#define keep_calls_apart(number, result) asm volatile("" : "+r"(result) : "i"(number))

/* The key is stored in whole words, because the map's hash loads words.  A load that spans narrower
 * stores waits until they have left the store buffer, which took a third of the time of an
 * established packet.
 */
static __always_inline struct service *service_at(__u8 family, const __be32 *vip, __be16 port,
						  __u8 l4_proto)
{
	struct service *service;

	if (!LB_IPV6 || family == 4) {
		union {
			struct service_key4 key;
			__u64 word;
		} at = { .word = (__u64)key_tail(port, l4_proto) << 32 | vip[0] };

		service = services4.lookup(&at.key);
		keep_calls_apart(4, service);
	} else {
		union {
			struct service_key6 key;
			__u32 word[5];
		} at;

		__builtin_memcpy(at.word, vip, 4 * sizeof(*vip));
		at.word[4] = key_tail(port, l4_proto);
		service = services6.lookup(&at.key);
		keep_calls_apart(6, service);
	}
	return service;
}

/* Returns the first address of the prefix VIP that `addr` is in. */
static __always_inline struct vip_prefix *prefix_of(__u8 family, const __be32 *addr)
{
	struct vip_prefix *prefix;

	if (!LB_IPV6 || family == 4) {
		struct vip_prefix4 key = { .prefix_len = 32, .addr = addr[0] };

		prefix = prefixes4.lookup(&key);
		keep_calls_apart(4, prefix);
	} else {
		struct vip_prefix6 key = { .prefix_len = 128 };

		__builtin_memcpy(key.addr, addr, sizeof(key.addr));
		prefix = prefixes6.lookup(&key);
		keep_calls_apart(6, prefix);
	}
	return prefix;
}

static __always_inline struct service *service_of_range(const struct packet *p, const __be32 *vip)
{
	struct port_range_key key = { .prefix_len = 176, .l4_proto = p->l4_proto };
	struct port_range *range;

	__builtin_memcpy(key.vip, vip, sizeof(key.vip));
	key.port = p->dport;
	range = ranges.lookup(&key);
	return range ? service_at(p->family, vip, range->first, p->l4_proto) : NULL;
}

/* Finds a service that is not stored under the packet's exact address and port. */
static __always_inline struct service *service_inexact(struct packet *p)
{
	struct service *mark = service_at(p->family, p->daddr, 0, 0), *service = NULL;
	const __be32 *vip = p->daddr;
	struct vip_prefix *prefix;

	if (LB_PREFIX && !mark) {
		prefix = prefix_of(p->family, p->daddr);
		if (!prefix)
			return NULL;
		vip = prefix->vip;
		if (!p->is_later_fragment && !p->has_extension)
			service = service_at(p->family, vip, p->dport, p->l4_proto);
		if (service)
			return service;
		mark = service_at(p->family, vip, 0, 0);
	}
	if (!mark)
		return NULL;
	if (LB_FULLNAT && mark->flags & SERVICE_F_NAT_SOURCE) {
		p->nat_source = mark->ring_line + 1;
		return NULL;
	}
	p->is_vip = 1;
	if (p->is_later_fragment || p->has_extension)
		return NULL;
	if (LB_RANGES && mark->flags & SERVICE_F_RANGES)
		service = service_of_range(p, vip);
	if (LB_ANY_PORT && !service && mark->flags & SERVICE_F_ANY_PORT)
		service = service_at(p->family, vip, 0, p->l4_proto);
	return service;
}

/* Returns the cache entry for this address and port.  For IPv4, all words of the address but the
 * first are 0.
 */
static __always_inline struct found_service *found_entry(struct scratch *room, const __be32 *vip,
							 __u32 tail)
{
	__u64 word = (__u64)tail << 32 | vip[0];

	if (LB_IPV6)
		word += ((__u64)vip[3] << 16) + vip[2] + vip[1];
	return &room->found[word * PICK_MUL0 >> 56];
}

static __always_inline bool found_matches(const struct found_service *found, const struct packet *p,
					  __u32 tail, __u32 version)
{
	if (found->version != version || found->tail != tail || found->vip[0] != p->daddr[0])
		return false;
	return !LB_IPV6 || p->family == 4 ||
	       (found->vip[1] == p->daddr[1] && found->vip[2] == p->daddr[2] &&
		found->vip[3] == p->daddr[3]);
}

/* Finds the service for the packet's own address and port.
 *
 * Each CPU caches what it finds, because the map's hash is a fifth of the cost of an established
 * packet.  The agent changes a service first and the version then, so that older entries are looked
 * up again; here the version is read first and the service then.  The absence of a service is
 * cached too, but never over a cached service, so hosts that probe ports cost the others nothing.
 */
static __always_inline struct service *service_exact(const struct packet *p, struct scratch *room)
{
	__u32 tail = key_tail(p->dport, p->l4_proto) | (__u32)p->family << 24, zero = 0, version;
	struct settings *row = settings.lookup(&zero);
	struct found_service *found;
	struct service *service;

	if (!row)
		return NULL;
	found = found_entry(room, p->daddr, tail);
	version = *(volatile __u64 *)&row->services_version;
	if (found_matches(found, p, tail, version))
		return found->service.id ? &found->service : NULL;
	/* A full barrier, on memory of this CPU.  All CPUs read the line of the version: on that
	 * line, CPUs would take it from each other with each packet of a host that probes ports.
	 */
	asm volatile("" : : "r"(__sync_fetch_and_add(&room->fence, 0)) : "memory");
	service = service_at(p->family, p->daddr, p->dport, p->l4_proto);
	if (service)
		found->service = *service;
	else if (found->version == version && found->service.id)
		return NULL;
	else
		found->service.id = 0;
	found->version = version;
	found->tail = tail;
	__builtin_memcpy(found->vip, p->daddr, sizeof(found->vip));
	return service ? &found->service : NULL;
}

/* Is there anything to look up besides the exact port? */
#define SERVICE_INEXACT (LB_ANY_PORT || LB_RANGES || LB_PREFIX || LB_NAT || LB_FULLNAT)

static __always_inline int service_find(struct packet *p, struct scratch *room,
					struct service **service)
{
	bool has_ports = !p->is_later_fragment && !p->has_extension;
	struct address_filter *filter;
	struct service *inexact;
	__u32 zero = 0;

	if (has_ports) {
		*service = service_exact(p, room);
		if (*service)
			return 0;
		if (!SERVICE_INEXACT)
			return REASON_NOT_VIP;
	}
	filter = addresses.lookup(&zero);
	if (!filter)
		return REASON_NOT_VIP;
	p->may_be_reply = LB_NAT && filter_has(filter, p->family, p->saddr);
	if (!filter_has(filter, p->family, p->daddr) &&
	    !(LB_PREFIX && filter_has_prefix(filter, p->daddr)))
		return REASON_NOT_VIP;
	inexact = service_inexact(p);
	if (has_ports) {
		if (!inexact)
			return REASON_NOT_VIP;
		/* Copied: the verifier would track which map it is from through all of the walk. */
		room->service = *inexact;
		*service = &room->service;
		return 0;
	}
	/* There are no ports to look at: only the address tells whether the packet is ours. */
	if (!p->is_vip)
		return REASON_NOT_VIP;
	return p->has_extension ? REASON_EXTENSION : REASON_FRAGMENT;
}

#endif
