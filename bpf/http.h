/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How much of a server's HTTP/1.x segment comes before the first token of the answer: the head, and
 * what engines send after it before they have computed anything:
 * - comments of server-sent events (WHATWG HTML, section 9.2.6), with which servers keep a stream
 *   alive;
 * - the events `ping`, `response.created`, `response.queued` and `response.in_progress`.
 *
 * The body may come in chunks (RFC 9112, section 7.1).  What is read is kept in per-CPU memory:
 * otherwise the verifier would follow the rest separately for each position.
 */
#ifndef STEELYARD_HTTP_H
#define STEELYARD_HTTP_H

#include "abi.h"
#include "ctx.h"
#include "heads.h"
#include "mask.h"
#include "packet.h"
#include "scratch.h"

#define HTTP_HEAD_MAX 2048 /* how much of a segment is searched for the end of a head */
#define HTTP_PIECES 4      /* in one segment */
#define HTTP_CHUNK_DIGITS 5
#define HTTP_COMMENT_MAX 128 /* without chunks, nothing says where a comment ends */

#define HTTP_LINE_END 0x0a0dU
#define HTTP_HEAD_END 0x0a0d0a0dU

/* How many bytes of a frame are read at most. */
#define HTTP_FRAME_MAX (HTTP_OFF_MASK + 1 + HTTP_HEAD_MAX)

/* Eight bytes of text, as they lie in memory. */
#define TEXT8(a, b, c, d, e, f, g, h) (TEXT4(a, b, c, d) | (__u64)TEXT4(e, f, g, h) << 32)
#define TEXT4(a, b, c, d) ((__u32)(a) | (b) << 8 | (c) << 16 | (__u32)(d) << 24)

/* Does a head begin here whose body is still to come?  204, 205, errors and redirects seldom have a
 * body that a client waits for.
 */
static __always_inline bool http_begins_head(const __u8 *text)
{
	if (text[0] != 'H' || text[4] != '/' || text[8] != ' ')
		return false;
	if (text[9] == '1')
		return true;
	return text[9] == '2' && (text[10] != '0' || (text[11] != '4' && text[11] != '5'));
}

/* Is this the head of an error whose time does not show the server's speed: 429 or 5xx? */
static __always_inline bool http_begins_error(const __u8 *text)
{
	if (text[0] != 'H' || text[4] != '/' || text[8] != ' ')
		return false;
	return text[9] == '5' || (text[9] == '4' && text[10] == '2' && text[11] == '9');
}

/* The segment's payload.  With a mask: a comparison would give the verifier two paths. */
#define HTTP_OFF_MASK 511
_Static_assert(L3_OFF_MAX + PAYLOAD_OFF_MAX <= HTTP_OFF_MASK, "an offset fits into the mask");
static __always_inline __u8 *http_text(CTX *ctx, const struct packet *p)
{
	__u32 offset = p->l3_off + p->payload_off;

	asm volatile("" : "+r"(offset));
	return ctx_data(ctx) + (offset & HTTP_OFF_MASK);
}

static __always_inline bool http_is_error(CTX *ctx, const struct packet *p)
{
	__u8 *text = http_text(ctx, p);

	return text + 12 <= (__u8 *)ctx_end(ctx) && http_begins_error(text);
}

/* Does a head end at the newest byte, or 1, 2 or 3 bytes before it?  Then negative. */
static __always_inline __s64 http_head_ends(__u64 seen)
{
	__u64 none = (seen >> 32 ^ HTTP_HEAD_END) - 1;

	none |= ((seen >> 24 & 0xffffffff) ^ HTTP_HEAD_END) - 1;
	none |= ((seen >> 16 & 0xffffffff) ^ HTTP_HEAD_END) - 1;
	none |= ((seen >> 8 & 0xffffffff) ^ HTTP_HEAD_END) - 1;
	asm volatile("" : "+r"(none));
	return none;
}

/* Looks for the end of the head that begins, or continues, at the segment's first byte.
 * room->text_at becomes the position just behind the four bytes in which it was found, or 0;
 * room->text_seen the newest eight bytes.
 */
static __always_inline void http_search(CTX *ctx, const struct packet *p, struct scratch *room)
{
	__u8 *text = http_text(ctx, p), *data_end = ctx_end(ctx);
	__u64 seen = 0;

	room->text_at = 0;
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < HTTP_HEAD_MAX; i += 4) {
		if (text + i + 4 > data_end)
			break;
		seen = seen >> 32 | (__u64) * (__u32 *)(text + i) << 32;
		if (http_head_ends(seen) < 0) {
			room->text_at = i + 4;
			room->text_seen = seen;
			break;
		}
	}
	/* What the verifier knows of the packet differs in each round: read all else anew. */
	step_ends();
}

/* Sets room->text_at to the position behind the head; 0: it does not end in this segment.  Sets
 * room->text_is_chunked if the head's last header says that the body is chunked, as with uvicorn.
 */
static __always_inline void http_find_end(CTX *ctx, const struct packet *p, struct scratch *room)
{
	__u8 *text = http_text(ctx, p), *data_end = ctx_end(ctx);
	__u64 at = room->text_at, seen = room->text_seen, back, last;

	if (at) {
		back = mask_equal(seen >> 24 & 0xffffffff, HTTP_HEAD_END) & 1;
		back |= mask_equal(seen >> 16 & 0xffffffff, HTTP_HEAD_END) & 2;
		back |= mask_equal(seen >> 8 & 0xffffffff, HTTP_HEAD_END) & 3;
		at -= back;
	} else {
		/* The last bytes, if they are fewer than four. */
		text += bounded(p->payload_len - 4, HTTP_HEAD_MAX - 4);
		if (p->payload_len >= 4 && text + 4 <= data_end && *(__u32 *)text == HTTP_HEAD_END)
			at = p->payload_len;
	}
	room->text_at = at <= p->payload_len ? at : 0;
	room->text_is_chunked = 0;
	step_ends();
	at = room->text_at;
	text = http_text(ctx, p);
	text += bounded(at - 12, HTTP_HEAD_MAX);
	if (at >= 12 && text + 8 <= (__u8 *)ctx_end(ctx)) {
		last = *(__u64 *)text;
		room->text_is_chunked = last == TEXT8(' ', 'c', 'h', 'u', 'n', 'k', 'e', 'd');
	}
	step_ends();
}

/* Returns the size in a chunk's first digits; room->text_digits: how many these are. */
static __always_inline __u32 http_chunk_size(const __u8 *text, struct scratch *room)
{
	__u64 size = 0, digits = 0, more = ~0ULL;

#pragma unroll
	for (int i = 0; i < HTTP_CHUNK_DIGITS; i++) {
		__u64 digit = text[i] - '0', letter = (text[i] | 0x20) - 'a', value;
		__u64 is_digit = mask_less(text[i], '9' + 1) & ~mask_less(text[i], '0');
		__u64 is_letter = mask_less(text[i] | 0x20, 'f' + 1) &
				  ~mask_less(text[i] | 0x20, 'a');

		more &= is_digit | is_letter;
		value = mask_choose(is_digit, digit, letter + 10);
		size = mask_choose(more, size << 4 | (value & 0xf), size);
		digits += more & 1;
	}
	room->text_digits = digits;
	return size;
}

/* Returns the length of a piece of a body that is no token: a comment, or an event without content.
 * 0: it is a token.  `left`: the rest of the segment's bytes.
 */
static __always_inline __u32 http_piece(const __u8 *text, const __u8 *data_end, __u32 left,
					struct scratch *room)
{
	__u32 size, head, is_chunk;
	__u64 first, second, third;

	if (text + 8 > data_end) /* the shortest comment in a chunk; without chunks, two bytes */
		return text + 2 <= data_end && text[0] == ':' ? left : 0;
	size = http_chunk_size(text, room);
	step_ends();
	head = bounded(room->text_digits, HTTP_CHUNK_DIGITS);
	first = *(__u64 *)text;
	is_chunk = head && (first >> 8 * head & 0xffff) == HTTP_LINE_END;
	head = is_chunk ? head + 2 : 0;
	room->text_digits = head;
	room->text_size = is_chunk ? head + size + 2 : 0;
	step_ends();
	text += bounded(room->text_digits, HTTP_CHUNK_DIGITS + 2);
	size = room->text_size;
	if (text + 2 > data_end)
		return 0;
	if (text[0] == ':') {
		if (size)
			return size;
		return left <= HTTP_COMMENT_MAX ? left : 0;
	}
	if (text + 24 > data_end)
		return 0;
	first = *(__u64 *)text;
	second = *(__u64 *)(text + 8);
	third = *(__u32 *)(text + 16);
	if (first == TEXT8('e', 'v', 'e', 'n', 't', ':', ' ', 'p') &&
	    (second & 0xffffff) == TEXT4('i', 'n', 'g', 0))
		return size ? size : left;
	if (first != TEXT8('e', 'v', 'e', 'n', 't', ':', ' ', 'r') ||
	    second != TEXT8('e', 's', 'p', 'o', 'n', 's', 'e', '.'))
		return 0;
	if (third != TEXT4('c', 'r', 'e', 'a') && third != TEXT4('i', 'n', '_', 'p') &&
	    third != TEXT4('q', 'u', 'e', 'u'))
		return 0;
	return size ? size : left;
}

/* Moves room->text_at forward over pieces that are no token.  If it meets a token: 0. */
static __always_inline void http_skip_pieces(CTX *ctx, const struct packet *p, struct scratch *room)
{
#pragma clang loop unroll(disable)
	for (int i = 0; i < HTTP_PIECES; i++) {
		__u8 *text = http_text(ctx, p);
		__u32 at = room->text_at, piece;

		if (at >= p->payload_len)
			return;
		if (at > HTTP_HEAD_MAX)
			break;
		piece = http_piece(text + bounded(at, HTTP_HEAD_MAX), ctx_end(ctx),
				   p->payload_len - at, room);
		room->text_at = piece ? at + piece : 0;
		step_ends();
		if (!room->text_at)
			return;
	}
	if (room->text_at < p->payload_len)
		room->text_at = 0;
}

/* Returns the position, possibly beyond the segment, up to which the segment holds no token; 0: it
 * holds one.  `from`: where the part begins that has not been looked at yet.  `interim`: what is
 * known of the answer so far (heads.h).
 */
static __always_inline __u32 http_upto(CTX *ctx, const struct packet *p, __u32 from, __u16 *interim)
{
	struct scratch *room = scratch_room();
	__u8 *text;

	if (!room)
		return 0;
	room->text_at = from < p->payload_len ? from : 0;
	room->text_begins = 0;
	room->text_in_head = (*interim & INTERIM_IN_HEAD) != 0;
	room->text_has_head = *interim != 0;
	*interim &= ~INTERIM_IN_HEAD;
	step_ends();
	text = http_text(ctx, p);
	if (!room->text_at && text + 12 <= (__u8 *)ctx_end(ctx))
		room->text_begins = http_begins_head(text);
	else if (text + 2 <= (__u8 *)ctx_end(ctx) && *(__u16 *)text == HTTP_LINE_END)
		room->text_at = room->text_in_head ? 2 : 0; /* only the empty line */
	step_ends();
	if ((room->text_begins | room->text_in_head) && !room->text_at) {
		http_search(ctx, p, room);
		http_find_end(ctx, p, room);
		if (!room->text_at) {
			if (p->payload_len > HTTP_HEAD_MAX)
				return 0;
			*interim |= INTERIM_IN_HEAD;
			return p->payload_len;
		}
		if (room->text_is_chunked)
			*interim |= INTERIM_SURE;
	} else if (!(room->text_has_head | room->text_in_head)) {
		return 0;
	}
	step_ends();
	room->text_began = room->text_at;
	http_skip_pieces(ctx, p, room);
	if (room->text_at > room->text_began)
		*interim |= INTERIM_SURE;
	return room->text_at;
}

#endif
