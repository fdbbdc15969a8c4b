/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* QUIC: a connection that moves to another address keeps its backend by its connection id
 * (draft-ietf-quic-load-balancers, the plaintext algorithm).
 *
 * A short header (RFC 9000, section 17.3) is one byte, then the destination connection id: a byte
 * of configuration rotation and length, then the server id.  Until the client has heard from the
 * server, it sends long headers with an id that it made up itself, so these packets go by their
 * addresses.
 */
#ifndef STEELYARD_QUIC_H
#define STEELYARD_QUIC_H

#include "ctx.h"
#include "maps.h"
#include "packet.h"

#define QUIC_LONG 0x80
#define QUIC_FIXED 0x40
#define QUIC_ROTATION 0xe0 /* all ones: not routable, by the draft */
#define QUIC_ID_MAX 8

/* Returns the backend that the packet names; 0: it names none. */
static __always_inline __u32 quic_backend(CTX *ctx, const struct packet *p,
					  const struct service *service)
{
	__u8 *payload = packet_payload(ctx_data(ctx), p);
	struct quic_key key = { .service = service->id };
	struct quic_server *server;
	__u8 *id = payload + 2;
	__u64 word;

	if (p->l4_proto != L4_UDP || p->payload_len < 2 + service->quic_id_len)
		return 0;
	if (payload + 2 + QUIC_ID_MAX > (__u8 *)ctx_end(ctx))
		return 0;
	if (payload[0] & QUIC_LONG || !(payload[0] & QUIC_FIXED) ||
	    (payload[1] & QUIC_ROTATION) == QUIC_ROTATION)
		return 0;
	/* Without a branch for each byte, which the verifier would follow both ways. */
	__builtin_memcpy(&word, id, sizeof(word));
	word &= ~0ULL >> (8 * (QUIC_ID_MAX - service->quic_id_len) & 63);
	__builtin_memcpy(key.id, &word, sizeof(word));
	server = quic_ids.lookup(&key);
	return server ? server->backend : 0;
}

#endif
