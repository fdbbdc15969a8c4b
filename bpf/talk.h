/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Tells from the first bytes of the client which protocol a connection speaks, and which of its
 * bytes are no request and no answer.  Reads a few bytes at most.
 */
#ifndef STEELYARD_TALK_H
#define STEELYARD_TALK_H

#include "abi.h"
#include "ctx.h"
#include "packet.h"

#define TALK_CONTINUE 25     /* "HTTP/1.1 100 Continue" and two line ends */
#define TALK_CONTROL_MAX 256 /* a longer segment carries more than control frames */

#define PLAIN_INTERIM 512

#define TLS_CHANGE_CIPHER 0x14
#define TLS_HANDSHAKE 0x16
#define TLS_DATA 0x17
/* TLS 1.3, the client's last handshake message: record header, message header, hash of 32 or 48
 * bytes, content type and tag.
 */
#define TLS_FINISHED_SHA256 58
#define TLS_FINISHED_SHA384 74
#define TLS_CHANGE_CIPHER_LEN 6
#define TLS_HEADER 5
/* Records of up to this size hold an alert, or an HTTP/2 SETTINGS, PING or WINDOW_UPDATE; the
 * smallest request with a prompt in it is longer.
 */
#define TLS_CONTROL 56
#define TLS_TICKETS 2048
#define TLS_INTERIM 512 /* the head of an answer has 150 to 300 bytes */

#define HTTP2_PREFACE 24 /* RFC 9113, section 3.4 */
#define HTTP2_HEADER 9
#define HTTP2_DATA 0
#define HTTP2_HEADERS 1
#define HTTP2_END_STREAM 0x1
#define HTTP2_FRAMES 6 /* frames to look at in one segment */
#define HTTP2_TYPES 10
#define HTTP2_INTERIM 256

/* Returns how many server bytes, within a round trip, may be no answer. */
static __always_inline __u32 talk_allowance(__u8 talk)
{
	switch (talk) {
	case TALK_TLS_HANDSHAKE:
	case TALK_TLS_FIRST:
		return TLS_TICKETS;
	case TALK_TLS:
		return TLS_INTERIM;
	case TALK_HTTP2_FIRST:
	case TALK_HTTP2:
		return HTTP2_INTERIM;
	}
	return PLAIN_INTERIM;
}

static __always_inline __u8 talk_answered(__u8 talk)
{
	if (talk == TALK_UNKNOWN)
		return TALK_PLAIN;
	if (talk == TALK_TLS_FIRST)
		return TALK_TLS;
	return talk == TALK_HTTP2_FIRST ? TALK_HTTP2 : talk;
}

/* Does a segment of HTTP/2 frames, from byte `skip` on, hold a message?  Messages are HEADERS or
 * DATA of a request, DATA of an answer, or HEADERS that are all of an answer.  A segment that
 * begins in the middle of a frame counts as one that does.
 */
static __always_inline bool talk_has_message(CTX *ctx, const struct packet *p, __u32 skip,
					     bool is_reply)
{
	void *data_end = ctx_end(ctx);
	void *payload = packet_payload(ctx_data(ctx), p);

	for (int i = 0; i < HTTP2_FRAMES; i++) {
		__u8 *frame;

		if (skip >= p->payload_len)
			return false;
		if (skip > TALK_CONTROL_MAX)
			return true;
		frame = payload + bounded(skip, TALK_CONTROL_MAX);
		if (frame + 5 > (__u8 *)data_end)
			return skip + 5 <= p->payload_len; /* beyond what can be read */
		if (frame[3] >= HTTP2_TYPES || frame[0])
			return true;
		/* A client's empty DATA frame only ends a stream, whose request came before. */
		if (frame[3] == HTTP2_DATA && (is_reply || frame[1] || frame[2]))
			return true;
		if (frame[3] == HTTP2_HEADERS && (!is_reply || frame[4] & HTTP2_END_STREAM))
			return true;
		skip += HTTP2_HEADER + (frame[1] << 8 | frame[2]);
	}
	return true;
}

/* Returns the protocol by the first payload of a client. */
static __always_inline __u8 talk_of(const __u8 *first)
{
	if (first[0] == TLS_HANDSHAKE && first[1] == 3)
		return TALK_TLS_HANDSHAKE;
	if (first[0] == 'P' && first[1] == 'R' && first[2] == 'I' && first[3] == ' ')
		return TALK_HTTP2_FIRST;
	return TALK_PLAIN;
}

/* Returns how many of a segment's bytes come after the last `flight` of the handshake. */
static __always_inline __u32 talk_behind(__u32 fresh, __u32 flight)
{
	return fresh > flight + TLS_CONTROL ? fresh - flight : 0;
}

/* Returns the number of request bytes in a TLS segment before the first request.  The handshake
 * ends with the client's Finished, alone or after a ChangeCipherSpec, or where application data
 * begins.
 */
static __always_inline __u32 talk_handshake_bytes(CTX *ctx, const struct packet *p,
						  struct flow_warm *warm, __u32 fresh)
{
	__u8 *first = packet_payload(ctx_data(ctx), p);
	__u32 flight = TLS_CHANGE_CIPHER_LEN + TLS_FINISHED_SHA384;

	if (first + TLS_CHANGE_CIPHER_LEN + TLS_HEADER > (__u8 *)ctx_end(ctx))
		return 0;
	/* The server has spoken, and client bytes are missing: a request has overtaken the
	 * Finished.
	 */
	if (fresh > p->payload_len && p->ack != warm->ack) {
		if (flight > fresh - p->payload_len)
			flight = fresh - p->payload_len;
		warm->talk = TALK_TLS_FIRST;
		return talk_behind(fresh, flight);
	}
	/* A long ClientHello takes two segments, and the second can begin with any byte. */
	if (first[1] != 3 || first[2] > 4)
		return 0;
	/* After the ChangeCipherSpec comes a second ClientHello (or it is TLS 1.2), or the Finished
	 * and perhaps a request.
	 */
	if (first[0] == TLS_CHANGE_CIPHER) {
		if (p->payload_len < TLS_CHANGE_CIPHER_LEN + TLS_FINISHED_SHA256 ||
		    first[6] != TLS_DATA)
			return 0;
		warm->talk = TALK_TLS_FIRST;
		flight = TLS_CHANGE_CIPHER_LEN + TLS_HEADER + (first[9] << 8 | first[10]);
		return talk_behind(fresh, flight);
	}
	if (first[0] != TLS_DATA || p->payload_len == TLS_FINISHED_SHA256 ||
	    p->payload_len == TLS_FINISHED_SHA384)
		return 0;
	warm->talk = TALK_TLS_FIRST;
	return fresh;
}

/* A late segment, while the protocol of the connection is still unknown: is it the first one? */
static __always_inline void talk_late(CTX *ctx, const struct packet *p, struct flow_warm *warm)
{
	__u8 *first = packet_payload(ctx_data(ctx), p);
	__u8 talk;

	if (first + 4 > (__u8 *)ctx_end(ctx))
		return;
	talk = talk_of(first);
	if (talk != TALK_PLAIN)
		warm->talk = talk;
}

/* Returns how many of the `fresh` bytes of a client's segment belong to a request. */
static __always_inline __u32 talk_request_bytes(CTX *ctx, const struct packet *p,
						struct flow_warm *warm, __u32 fresh)
{
	__u8 *first = packet_payload(ctx_data(ctx), p);
	bool is_first = warm->talk == TALK_UNKNOWN;

	if (warm->talk == TALK_PLAIN || first + 4 > (__u8 *)ctx_end(ctx))
		return fresh;
	if (is_first) {
		if (warm->waiting || fresh > p->payload_len)
			return fresh; /* the first segment was overtaken: talk_late() */
		warm->talk = talk_of(first);
	}
	switch (warm->talk) {
	case TALK_TLS_HANDSHAKE:
		return talk_handshake_bytes(ctx, p, warm, fresh);
	case TALK_TLS_FIRST:
	case TALK_TLS:
		/* A short last segment can overtake all other segments of a request. */
		return p->payload_len <= TLS_CONTROL && fresh <= p->payload_len ? 0 : fresh;
	case TALK_HTTP2_FIRST:
	case TALK_HTTP2:
		if (p->payload_len > TALK_CONTROL_MAX || fresh > p->payload_len)
			return fresh;
		ctx_pull(ctx, L3_OFF_MAX + PAYLOAD_OFF_MAX + TALK_CONTROL_MAX);
		return talk_has_message(ctx, p, is_first ? HTTP2_PREFACE : 0, false) ? fresh : 0;
	}
	return fresh;
}

#endif
