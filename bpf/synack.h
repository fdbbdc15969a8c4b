/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The SYN-ACK with a cookie (cookie.h) that a client gets in the server's name: reads the options
 * of the SYN, and chooses those of the SYN-ACK.
 *
 * The SYN-ACK is written over the SYN and never longer than it.  Its options are those that the
 * client has, in the order in which Linux sends them.  A SYN has room for one of these:
 *   20 bytes  MSS; SACK permitted or padding, timestamps; padding, window scale
 *   12 bytes  MSS; SACK permitted or padding; padding, window scale
 *    4 bytes  MSS
 */
#ifndef STEELYARD_SYNACK_H
#define STEELYARD_SYNACK_H

#include "abi.h"
#include "cookie.h"
#include "ctx.h"
#include "mask.h"
#include "packet.h"
#include "scratch.h"

#define SYNACK_ROUNDS 12 /* number of options; usually there are six */
#define SYNACK_SPACE 40  /* RFC 9293, section 3.1 */
#define SYNACK_MTU 1500
#define SYNACK_WINDOW 65535
/* The overhead of a tunnel over IPv6, the larger family. */
#define SYNACK_IPIP 40
#define SYNACK_GUE 48

static __always_inline __u32 synack_space(const struct packet *p)
{
	return p->payload_off - p->l4_off - sizeof(struct tcp_header);
}

/* Reads options in the order in which Linux and most others send them: without a loop, as in a
 * flood each SYN pays for this.
 */
static __always_inline bool synack_read_usual(CTX *ctx, const struct packet *p, struct synack *s)
{
	__be32 *words = packet_l4(ctx_data(ctx), p) + sizeof(struct tcp_header);

	if (synack_space(p) != 20 || (void *)(words + 5) > ctx_end(ctx))
		return false;
	if (((words[0] ^ be32(0x02040000)) & be32(0xffff0000)) | (words[1] ^ be32(0x0402080a)) |
	    ((words[4] ^ be32(0x01030300)) & be32(0xffffff00)))
		return false;
	s->mss = bswap32(words[0]) & 0xffff;
	s->sack = 1;
	s->has_stamp = 1;
	s->stamp = words[2];
	s->scale = bswap32(words[4]) & 0xff;
	return true;
}

static __always_inline void synack_copy(CTX *ctx, const struct packet *p, struct synack *s)
{
	__u32 *from = packet_l4(ctx_data(ctx), p) + sizeof(struct tcp_header);
	__u32 *to = (__u32 *)s->asked, space = synack_space(p);
	void *data_end = ctx_end(ctx);

	__builtin_memset(s->asked, 0, sizeof(s->asked));
#pragma unroll
	for (int i = 0; i < SYNACK_SPACE / 4; i++) {
		if (4 * i < space && (void *)(from + i + 1) <= data_end)
			to[i] = from[i];
	}
}

/* Reads options in any order.  What it notes in `s` it reads back: see step_ends(). */
static __always_inline void synack_read(struct synack *s)
{
	for (int i = 0; i < SYNACK_ROUNDS; i++) {
		__u32 at = bounded(s->at, SYNACK_SPACE);
		__u8 kind = s->asked[at], size = s->asked[at + 1];

		if (kind == TCP_OPTION_END || at >= SYNACK_SPACE)
			break;
		if (kind == TCP_OPTION_NOP)
			size = 1;
		else if (size < 2)
			break;
		if (kind == TCP_OPTION_MSS && size == 4)
			s->mss = s->asked[at + 2] << 8 | s->asked[at + 3];
		if (kind == TCP_OPTION_SCALE && size == 3)
			s->scale = s->asked[at + 2];
		if (kind == TCP_OPTION_SACK && size == 2)
			s->sack = 1;
		if (kind == TCP_OPTION_TIMESTAMPS && size == 10) {
			s->has_stamp = 1;
			s->stamp = (__u32)s->asked[at + 2] | (__u32)s->asked[at + 3] << 8 |
				   (__u32)s->asked[at + 4] << 16 | (__u32)s->asked[at + 5] << 24;
		}
		s->at = at + size;
		step_ends();
	}
}

static __always_inline __u32 synack_mss_index(__u8 family, __u32 mss)
{
	__u32 index = 0;

#pragma unroll
	for (int i = 1; i < 4; i++)
		index -= mask_less(cookie_mss(family, i) - 1, mss);
	return index & 3;
}

/* Returns the MSS to announce: the largest segment that fits the path to every server. */
static __always_inline __u32 synack_mss(const struct packet *p, const struct route *route,
					const struct cookie_secret *secret)
{
	__u32 mss = secret->mtu ? secret->mtu : SYNACK_MTU;

	mss -= sizeof(struct tcp_header) + sizeof(struct ipv6_header);
	mss += mask_equal(p->family, 4) & (sizeof(struct ipv6_header) - sizeof(struct ipv4_header));
	mss -= mask_equal(route->forward, FORWARD_IPIP) & SYNACK_IPIP;
	mss -= mask_equal(route->forward, FORWARD_GUE) & SYNACK_GUE;
	return mss;
}

/* Writes the options.  Words that are not sent stay 0, for the checksum. */
static __always_inline void synack_write(struct synack *s, __u32 mss, __u64 now)
{
	__u64 has_scale = ~mask_equal(s->scale, COOKIE_NO_SCALE),
	      has_sack = ~mask_equal(s->sack, 0);
	__be32 scale = mask_choose(has_scale, be32(0x01030300 | COOKIE_OUR_SCALE), 0x01010101);

	s->options[0] = be32(0x02040000 | (mss & 0xffff)) & ~(__u32)mask_less(s->len, 4);
	if (s->len == 20) {
		s->options[1] = mask_choose(has_sack, be32(0x0402080a), be32(0x0101080a));
		s->options[2] = be32((__u32)(now >> 20)); /* milliseconds, nearly */
		s->options[3] = s->stamp;
		s->options[4] = scale;
	} else if (s->len == 12) {
		s->options[1] = mask_choose(has_sack, be32(0x04020101), be32(0x01010101));
		s->options[2] = scale;
	}
}

/* Fills in the options of the SYN-ACK and the cookie; false if there is no key. */
static __always_inline bool synack_make(CTX *ctx, const struct packet *p, const struct route *route,
					struct synack *s)
{
	struct cookie_secret *secret;
	__u32 zero = 0, space = synack_space(p), bits;
	__u64 now = bpf_ktime_get_ns(), epoch;

	secret = cookie_secret.lookup(&zero);
	if (!secret || !secret->keys)
		return false;
	__builtin_memset(s, 0, __builtin_offsetof(struct synack, asked));
	s->scale = COOKIE_NO_SCALE;
	if (!synack_read_usual(ctx, p, s)) {
		synack_copy(ctx, p, s);
		step_ends();
		synack_read(s);
	}
	step_ends();
	s->len = space >= 20 && s->has_stamp ? 20 : space >= 12 ? 12 : space >= 4 ? 4 : 0;
	if (s->len < 12) {
		s->scale = COOKIE_NO_SCALE;
		s->sack = 0;
	}
	if (s->scale > COOKIE_SCALE_MAX && s->scale != COOKIE_NO_SCALE)
		s->scale = COOKIE_SCALE_MAX;
	step_ends();
	epoch = (now + secret->wall_ns) >> COOKIE_EPOCH_LOG;
	bits = (epoch & 1) << 7 | synack_mss_index(p->family, s->mss) << 5 |
	       (s->sack & 1) * COOKIE_SACK | (s->scale & 15);
	s->cookie = cookie_hash(secret->key, p->saddr, p->sport, p->dport, p->seq, epoch, bits);
	synack_write(s, synack_mss(p, route, secret), now);
	step_ends();
	return true;
}

#endif
