/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Heads of answers that cannot be read, under TLS and where only acknowledgements pass.  The heads
 * of a service have a few sizes, constant to some bytes.  The packet path notes how many bytes came
 * before an answer and how long the pause after them was; the agent finds the sizes that are heads
 * (agent/weights/heads.py), and bytes of such a size are never taken for an answer, whenever they
 * come.  Where all small answers have one size, they may be late heads.  Then the server's first
 * bytes are taken for a head for some requests, to see what follows.
 */
#ifndef STEELYARD_HEADS_H
#define STEELYARD_HEADS_H

#include "maps.h"
#include "mask.h"

#define HEAD_MAX 1024

/* flow_warm.interim: the number of bytes since the request that were no answer, and flags. */
#define INTERIM_BYTES 0x1fff
#define INTERIM_SURE 0x4000    /* these bytes are no answer, however late they come */
#define INTERIM_IN_HEAD 0x8000 /* these bytes end in the middle of a head */

static __always_inline struct service_heads *heads_of(__u32 backend_id)
{
	struct backend *backend = backends.lookup(&backend_id);
	__u32 service;

	if (!backend)
		return NULL;
	service = backend->service;
	return service_heads.lookup(&service);
}

/* Before the first answer of a connection come session tickets or settings. */
static __always_inline bool heads_are_first(__u8 talk)
{
	return talk == TALK_TLS_HANDSHAKE || talk == TALK_TLS_FIRST || talk == TALK_HTTP2_FIRST;
}

static __always_inline bool heads_has(const struct service_heads *heads, __u8 talk, __u32 bytes)
{
	const struct head_range *range = heads_are_first(talk) ? heads->first : heads->later;
	__u64 found = 0;

#pragma unroll
	for (int i = 0; i < HEAD_RANGES; i++)
		found |= ~mask_less(bytes, range[i].least) & ~mask_less(range[i].most, bytes);
	return found & 1;
}

/* Is this one of the requests for which the first bytes are taken for a head, as a probe? */
static __always_inline bool heads_probe(const struct service_heads *heads, __u32 tag, __u32 bytes)
{
	return bytes <= HEAD_MAX && heads->probes && !(tag & heads->probe_mask);
}

static __always_inline void heads_note(struct service_heads *heads, __u32 kind, __u8 talk,
				       __u32 bytes, __u32 upto, __u32 us, __u32 pause)
{
	struct head_sample *sample;

	sample = &heads->sample[heads->samples & (HEAD_SAMPLES - 1)];
	__sync_fetch_and_add(&heads->samples, 1);
	sample->kind = 0;
	sample->us = us;
	sample->pause = pause;
	sample->upto = upto;
	sample->bytes = bytes < 0xffff ? bytes : 0xffff;
	sample->is_first = heads_are_first(talk);
	sample->kind = kind;
}

#endif
