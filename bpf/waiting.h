/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The kernel sees the prompt: the request bytes that still wait for the first byte of their answer,
 * per flow and per backend, and how long they have waited.
 *
 * A flow's bytes are added to its warm entry and to its backend's sum together, and leave both by
 * one exchange.  So whatever two CPUs do at the same time, each byte that was added is removed
 * once.
 *
 * The answer has begun when the server's position is beyond where it was when the request came.  In
 * nat and fullnat the position is the end of a packet of the server; in dsr and the tunnels it is
 * what the client acknowledges.  Some bytes of a server are not yet the answer (`interim`).  Where
 * they can be seen and are not encrypted, they are recognized by their content:
 * - an informational status (RFC 9110, section 15.2: 100 Continue);
 * - the head of an answer, and comments and events without content behind it (http.h): an engine
 *   that streams sends these at once, and the first token when it has processed the prompt;
 * - HTTP/2 frames other than DATA (RFC 9113).
 *
 * Elsewhere they are recognized by size and time, as an answer that had to be computed is not both
 * small and early: the above, and TLS 1.3 session tickets right after the handshake (RFC 8446,
 * section 4.6.1).
 *
 * Some bytes of a client are not a request, either: TLS handshake and alerts, and HTTP/2 control
 * frames.
 */
#ifndef STEELYARD_WAITING_H
#define STEELYARD_WAITING_H

#include "count.h"
#include "ctx.h"
#include "heads.h"
#include "http.h"
#include "mask.h"
#include "packet.h"
#include "score.h"
#include "slot.h"
#include "talk.h"

/* For this long after a round trip, what a server sends can be interim: a busy server does not
 * start to work at once, and a client's acknowledgement may be delayed (Linux: 40 ms).  GRACE_FEW
 * bytes or fewer are seldom an answer, however late they come.
 */
#define GRACE_NS 50000000ULL
#define GRACE_ACK_NS 90000000ULL
#define GRACE_FEW_NS 100000000ULL
#define GRACE_FEW 128
#define GRACE_UNKNOWN_RTT_US 20000
/* The number of bytes missing before a segment is only the client's claim, and others can forge it.
 * So only a gap up to GAP_MAX is believed, and only FLOW_WAITING_MAX bytes per flow.  A segment
 * further away than GAP_STRAY, forwards or back, only says where the flow is now.
 */
#define GAP_MAX (1 << 16)
#define GAP_STRAY (1 << 20)
#define FLOW_WAITING_MAX (1 << 20)

static __always_inline struct request_mark *request_mark_of(__u32 tag)
{
	__u32 index = tag & (REQUEST_MARKS - 1);

	return request_marks.lookup(&index);
}

/* Notes what a request meets when it arrives, and which client it is from. */
static __always_inline void waiting_mark(const struct packet *p, const struct backend_load *load,
					 __u32 tag)
{
	struct request_mark *mark = request_mark_of(tag);

	if (!mark)
		return;
	mark->ahead = at_least_zero(load->waiting + load->waiting_fix);
	mark->open = score_counted(load, score_share(load));
	if (LB_AFFINITY)
		mark->source = client_hash(p);
	mark->tag = tag;
}

/* Writes the sample of a request that has been answered.  Two CPUs that do so at once may meet in
 * one element, and leave a mixture of two requests of the same moment.
 */
static __always_inline void waiting_sample(__u32 backend, __u32 tag, __u32 bytes, __u32 us)
{
	struct backend_latency *latency = backend_latency.lookup(&backend);
	struct request_mark *mark = request_mark_of(tag);
	struct backend_sample *sample;
	struct sample_source *source;
	__u32 index;

	if (!latency || !mark || mark->tag != tag)
		return;
	mark->tag = 0;
	index = backend * SAMPLES + (latency->samples & (SAMPLES - 1));
	__sync_fetch_and_add(&latency->samples, 1);
	sample = backend_samples.lookup(&index);
	if (!sample)
		return;
	sample->us = 0;
	sample->ahead = mark->ahead;
	sample->bytes = bytes;
	sample->open = mark->open;
	if (LB_AFFINITY) {
		source = sample_sources.lookup(&index);
		if (source)
			source->hash = mark->source;
	}
	sample->us = us | !us;
}

static __always_inline void waiting_add(const struct packet *p, struct flow_warm *warm,
					__u32 backend, __u32 tag, __u32 bytes, bool is_first)
{
	struct backend_load *load = backend_load.lookup(&backend);
	__u64 held = warm->waiting;

	if (!load || held >= FLOW_WAITING_MAX)
		return;
	if (bytes > FLOW_WAITING_MAX - held)
		bytes = FLOW_WAITING_MAX - held;
	if (is_first)
		waiting_mark(p, load, tag);
	__sync_fetch_and_add(&warm->waiting, (__u64)bytes);
	__sync_fetch_and_add(&load->waiting, (__s64)bytes);
}

/* Has the agent taken the flow's bytes out of the sum, because they had waited too long? */
static __always_inline bool waiting_is_forgotten(__u64 held)
{
	return held >> WAITING_FORGOTTEN_SHIFT;
}

/* Takes a flow's bytes out of its backend's sum, if they are in it; returns how many they were. */
static __always_inline __u32 waiting_drop(struct flow_warm *warm, __u32 backend)
{
	struct backend_load *load = backend_load.lookup(&backend);
	__u64 held;

	if (!load)
		return 0;
	held = __sync_lock_test_and_set(&warm->waiting, 0);
	if (held && !waiting_is_forgotten(held))
		__sync_fetch_and_add(&load->waiting, -(__s64)held);
	return held;
}

/* Returns the bucket of a time: half octaves from 64 us (abi.h). */
static __always_inline __u32 latency_bucket(__u64 us)
{
	__u32 octave = 0, bucket;
	__u64 left = us >> 6;

	if (!left)
		return 0;
	if (left >> 16) {
		octave += 16;
		left >>= 16;
	}
	if (left >> 8) {
		octave += 8;
		left >>= 8;
	}
	if (left >> 4) {
		octave += 4;
		left >>= 4;
	}
	if (left >> 2) {
		octave += 2;
		left >>= 2;
	}
	octave += left >> 1;
	bucket = 1 + 2 * octave + ((us >> (octave + 5)) & 1);
	return bucket < LATENCY_BUCKETS ? bucket : LATENCY_BUCKETS - 1;
}

static __always_inline void count_first_byte(__u32 backend, __u64 us)
{
	struct backend_latency *latency = backend_latency.lookup(&backend);
	__u32 bucket = latency_bucket(us);

	if (!latency || bucket >= LATENCY_BUCKETS)
		return;
	__sync_fetch_and_add(&latency->first_byte[bucket], 1);
	__sync_fetch_and_add(&latency->first_byte_us, us);
}

static __always_inline void count_handshake(__u32 backend, __u64 us)
{
	struct backend_latency *latency = backend_latency.lookup(&backend);
	__u32 bucket = latency_bucket(us);

	if (!latency || bucket >= LATENCY_BUCKETS)
		return;
	__sync_fetch_and_add(&latency->handshake[bucket], 1);
	__sync_fetch_and_add(&latency->handshake_us, us);
}

/* Counts a request that was answered with an error, or not at all. */
static __always_inline void count_failure(__u32 backend, bool is_hangup)
{
	struct backend_latency *latency = backend_latency.lookup(&backend);

	if (latency)
		__sync_fetch_and_add(is_hangup ? &latency->hangups : &latency->errors, 1);
}

/* What a packet has shown of an answer. */
struct answer {
	__u32 bytes; /* request bytes that waited for it; 0: it has not begun */
	__u32 us;
};

/* Returns for how long after the client's bytes this many bytes of the server can be interim. */
static __always_inline __u64 waiting_grace(const struct flow_warm *warm, __u32 bytes, bool is_reply)
{
	__u32 rtt_us = warm->rtt_us ? warm->rtt_us : GRACE_UNKNOWN_RTT_US;
	__u64 beyond = is_reply ? GRACE_NS : GRACE_ACK_NS;

	return rtt_us * 1500ULL + (bytes <= GRACE_FEW ? GRACE_FEW_NS : beyond);
}

/* Can the content of the server's packets be read? */
static __always_inline bool waiting_is_read(const struct flow_warm *warm, bool is_reply)
{
	return is_reply && (warm->talk == TALK_UNKNOWN || warm->talk == TALK_PLAIN ||
			    warm->talk == TALK_HTTP2 || warm->talk == TALK_HTTP2_FIRST);
}

/* Are the server's bytes up to `position` interim, and not the answer?  A chunk without content can
 * end beyond its segment; then `position` becomes the end of the chunk.
 */
static __always_inline bool waiting_is_interim(CTX *ctx, const struct packet *p,
					       struct flow_warm *warm, __u32 backend, __u32 tag,
					       __u32 *position, __u64 waited_ns, bool is_reply)
{
	__u32 bytes = *position - warm->ack + (warm->interim & INTERIM_BYTES), upto;
	bool is_plain = warm->talk == TALK_PLAIN || warm->talk == TALK_UNKNOWN;
	struct service_heads *heads;

	if (waiting_is_read(warm, is_reply))
		ctx_pull(ctx, HTTP_FRAME_MAX);
	if (is_reply && is_plain) {
		upto = http_upto(ctx, p, warm->ack - p->seq, &warm->interim);
		*position = p->seq + upto;
		return upto;
	}
	if (is_reply && (warm->talk == TALK_HTTP2 || warm->talk == TALK_HTTP2_FIRST))
		return p->payload_len <= TALK_CONTROL_MAX && !talk_has_message(ctx, p, 0, true);
	if (is_plain && bytes == TALK_CONTINUE)
		return true;
	heads = heads_of(backend);
	if (heads && heads_has(heads, warm->talk, bytes)) {
		warm->interim |= INTERIM_SURE;
		return true;
	}
	if (warm->interim & INTERIM_SURE) /* the head has come already */
		return false;
	if (waited_ns <= waiting_grace(warm, bytes, is_reply) &&
	    bytes <= talk_allowance(warm->talk))
		return true;
	return heads && !warm->interim && heads_probe(heads, tag ^ warm->seq, bytes);
}

/* Notes what an answer, whose first packet has `bytes`, shows about heads; returns whether its time
 * can be learned from.
 */
static __always_inline bool waiting_note(const struct flow_warm *warm, __u32 backend, __u32 bytes,
					 __u32 us)
{
	struct service_heads *heads = heads_of(backend);
	__u32 interim = warm->interim & INTERIM_BYTES, pause;

	if (!heads)
		return true;
	if (interim) {
		pause = (__u32)bpf_jiffies64() - warm->request_jiffies;
		heads_note(heads, HEAD_FOLLOWED, warm->talk, interim, interim + bytes, us, pause);
	} else if (!heads->is_known || bytes <= HEAD_MAX) {
		heads_note(heads, HEAD_NONE, warm->talk, bytes, 0, us, 0);
	}
	return heads->is_known;
}

/* After some bytes of the server, the client goes on or hangs up: notes that these bytes were all
 * of the answer.
 */
static __always_inline void waiting_note_alone(const struct flow_warm *warm, __u32 backend,
					       bool is_reply)
{
	__u32 interim = warm->interim & INTERIM_BYTES;
	struct service_heads *heads;

	if (!interim || waiting_is_read(warm, is_reply))
		return;
	heads = heads_of(backend);
	if (heads)
		heads_note(heads, HEAD_ALONE, warm->talk, interim, 0, 0, 0);
}

/* Returns how much of the time was spent at the backend.  Where the client's acknowledgement shows
 * the answer, it includes a round trip as long as that of the handshake.
 */
static __always_inline __u32 waiting_at_backend(const struct flow_warm *warm, __u32 us,
						bool is_reply)
{
	if (is_reply)
		return us;
	return us > warm->rtt_us ? us - warm->rtt_us : 1;
}

/* The server has reached `position`: if this is the answer, fills in `answer`, and counts and
 * samples it.
 */
static __always_inline void waiting_answer(CTX *ctx, const struct packet *p, struct flow_warm *warm,
					   __u32 backend, __u32 tag, __u32 position,
					   bool is_closing, bool is_reply, struct answer *answer)
{
	bool is_known = true;
	__u64 waited;
	__u32 more;

	if ((__s32)(position - warm->ack) <= 0)
		return;
	/* One byte: the client acknowledges the FIN of a server that has sent no answer. */
	if (!is_reply && position - warm->ack == 1) {
		waiting_drop(warm, backend);
		return;
	}
	waited = bpf_ktime_get_ns() - warm->request;
	if (!is_closing &&
	    waiting_is_interim(ctx, p, warm, backend, tag, &position, waited, is_reply)) {
		more = (warm->interim & INTERIM_BYTES) + position - warm->ack;
		warm->interim &= ~INTERIM_BYTES;
		warm->interim |= more < INTERIM_BYTES ? more : INTERIM_BYTES;
		warm->ack = position;
		warm->request_jiffies = bpf_jiffies64(); /* the pause begins here */
		return;
	}
	answer->bytes = waiting_drop(warm, backend);
	answer->us = waited / 1000;
	if (!is_closing && answer->bytes && !waiting_is_read(warm, is_reply))
		is_known = waiting_note(warm, backend, position - warm->ack, answer->us);
	warm->interim = 0;
	warm->talk = talk_answered(warm->talk);
	if (!answer->bytes)
		return;
	count_first_byte(backend, answer->us);
	/* Learn no speed from these: a request so large that not all of its bytes were counted; an
	 * answer to a client that has hung up, which may be gone; bytes that may have been a head;
	 * and an error.
	 */
	if (is_reply && warm->talk == TALK_PLAIN && http_is_error(ctx, p)) {
		is_known = false;
		count_failure(backend, false);
	}
	if (!is_closing && is_known && answer->bytes < FLOW_WAITING_MAX)
		waiting_sample(backend, tag, answer->bytes,
			       waiting_at_backend(warm, answer->us, is_reply));
}

/* Sets the time of a request that begins or goes on.  Session tickets come right after the
 * handshake, so a first request that comes later does not meet any.
 */
static __always_inline void waiting_clock(struct flow_warm *warm, bool goes_on)
{
	__u32 jiffies = bpf_jiffies64();
	__u64 now;

	/* Reading the clock costs more than all the rest, and once per jiffy is enough for a burst
	 * of segments.  What follows an interim answer is another burst: the body after a 100
	 * Continue comes within the same jiffy, however long the server took to ask for it.
	 */
	if (goes_on && warm->request_jiffies == jiffies && !warm->interim)
		return;
	now = bpf_ktime_get_ns();
	if (warm->talk == TALK_TLS_FIRST && !goes_on &&
	    now - warm->request > waiting_grace(warm, TLS_TICKETS, true))
		warm->talk = TALK_TLS;
	warm->request = now;
	warm->request_jiffies = jiffies;
}

/* Bytes that have been counted before: they were lost and sent again, or overtaken, so only now
 * does the server have all of the request.  (One byte is a keep-alive probe.)
 */
static __always_inline void waiting_late(CTX *ctx, const struct packet *p, struct flow_warm *warm,
					 __u32 backend)
{
	if (p->payload_len <= 1 || !warm->waiting)
		return;
	waiting_clock(warm, true);
	if (warm->talk != TALK_UNKNOWN)
		return;
	talk_late(ctx, p, warm);
	if (warm->talk == TALK_TLS_HANDSHAKE)
		waiting_drop(warm, backend);
}

/* Is a FIN or RST not at the client's position?  Whoever knows the ports can forge one, and the
 * server does not believe it either (RFC 5961, section 3: a RST has to be at the next byte; a FIN
 * may overtake what comes before it).  After a failover the position is unknown.
 */
static __always_inline bool waiting_is_stray(const struct packet *p, const struct flow_warm *warm)
{
	__u32 near = p->tcp_flags & TCP_RST ? 1 : GAP_MAX;
	__u32 away = p->seq - warm->seq + near;

	return warm->ack && away > 2 * near;
}

/* Returns the number of new request bytes in a segment of the client. */
static __always_inline __u32 waiting_fresh(CTX *ctx, const struct packet *p, struct flow_warm *warm,
					   __u32 backend)
{
	__u32 end = p->seq + p->payload_len;
	__u32 fresh = end - warm->seq;
	__s32 gap = p->seq - warm->seq;
	bool is_handshake, is_ahead;

	if (fresh + GAP_STRAY <= GAP_STRAY) { /* as signed numbers: from -GAP_STRAY to 0 */
		waiting_late(ctx, p, warm, backend);
		return 0;
	}
	if (gap > GAP_STRAY || gap < -GAP_STRAY)
		fresh = p->payload_len;
	else if (gap > GAP_MAX)
		fresh = p->payload_len + GAP_MAX;
	warm->seq = end;
	is_handshake = warm->talk == TALK_TLS_HANDSHAKE;
	is_ahead = fresh > p->payload_len;
	fresh = talk_request_bytes(ctx, p, warm, fresh);
	if (is_handshake && (!fresh || is_ahead)) /* maybe its last segment */
		warm->request = bpf_ktime_get_ns();
	return fresh;
}

static __always_inline struct syn_time *syn_time_of(__u32 tag)
{
	__u32 index = tag & (SYN_TIMES - 1);

	return syn_times.lookup(&index);
}

/* Notes the time of a SYN that opens a flow.  In a flood, an element is overwritten more often than
 * it is worth reading the clock.
 */
static __always_inline void waiting_syn(__u32 tag)
{
	struct syn_time *syn = syn_time_of(tag);
	__u32 now = bpf_jiffies64();

	if (!syn || (syn->jiffies == now && syn->tag))
		return;
	syn->tag = tag;
	syn->jiffies = now;
	syn->ns = bpf_ktime_get_ns();
}

/* Begins to follow a flow, at the client's second packet, which as a rule ends the handshake; the
 * next bytes of client and server are those that it names.
 */
static __always_inline void waiting_open(const struct packet *p, struct flow_warm *warm,
					 __u32 backend, __u32 tag)
{
	struct syn_time *syn = syn_time_of(tag);

	warm->waiting = 0;
	warm->request = 0;
	warm->seq = p->seq;
	warm->ack = p->ack;
	warm->rtt_us = 0;
	warm->talk = TALK_UNKNOWN;
	warm->interim = 0;
	if (!syn || syn->tag != tag)
		return;
	warm->request = bpf_ktime_get_ns();
	warm->rtt_us = (warm->request - syn->ns) / 1000 + 1;
	syn->tag = 0;
	count_handshake(backend, warm->rtt_us);
}

/* Handles a packet of the client; returns whether a request waits afterwards. */
static __always_inline bool waiting_client(CTX *ctx, const struct packet *p, struct flow_warm *warm,
					   __u32 backend, __u32 tag, __u32 state, bool sees_replies,
					   struct answer *answer)
{
	bool awaits = slot_awaits(state);
	__u32 fresh = 0;

	if (p->tcp_flags & TCP_RST) {
		if (awaits)
			waiting_drop(warm, backend);
		return false;
	}
	/* The payload of a SYN (RFC 7413) is counted with the bytes that follow it: until then, the
	 * flow can be evicted at any time.
	 */
	if (p->tcp_flags & TCP_SYN)
		return awaits;
	if (state == FLOW_EMBRYONIC)
		waiting_open(p, warm, backend, tag);
	if (awaits && !sees_replies && p->tcp_flags & TCP_ACK) {
		waiting_answer(ctx, p, warm, backend, tag, p->ack, slot_base(state) == FLOW_CLOSING,
			       false, answer);
		awaits = warm->waiting != 0;
	}
	if (p->payload_len) {
		fresh = waiting_fresh(ctx, p, warm, backend);
		awaits = awaits && (fresh || warm->waiting);
	}
	if (fresh) {
		if (awaits)
			waiting_note_alone(warm, backend, sees_replies);
		/* The client asks again.  So what looked like a head alone was all of an answer, or
		 * it has given up its previous request.
		 */
		if (awaits && (waiting_is_forgotten(warm->waiting) ||
			       (warm->talk <= TALK_PLAIN &&
				(warm->interim & INTERIM_BYTES) > TALK_CONTINUE))) {
			waiting_drop(warm, backend);
			awaits = false;
		}
		if (!awaits)
			warm->ack = p->ack;
		/* A request has arrived with its last segment; a sender sets PSH on the last
		 * segment of what it was given to send.  The first segment after an interim answer
		 * counts as well: the last one can come within the jiffy that the interim answer
		 * has noted, and would change nothing then.
		 */
		if (!awaits || warm->interim || p->tcp_flags & TCP_PSH)
			waiting_clock(warm, awaits);
		warm->interim = 0;
		waiting_add(p, warm, backend, tag, fresh, !awaits);
		awaits = true;
	}
	/* It has got something and hangs up, so it no longer waits. */
	if (awaits && p->tcp_flags & TCP_FIN && warm->interim) {
		waiting_note_alone(warm, backend, sees_replies);
		waiting_drop(warm, backend);
		return false;
	}
	return awaits;
}

/* Handles a packet of the server (nat, fullnat) while a request waits; returns whether it goes on
 * waiting.
 */
static __always_inline bool waiting_server(CTX *ctx, const struct packet *p, struct flow_warm *warm,
					   __u32 backend, __u32 tag, __u32 state,
					   struct answer *answer)
{
	if (p->payload_len) {
		waiting_answer(ctx, p, warm, backend, tag, p->seq + p->payload_len,
			       slot_base(state) == FLOW_CLOSING, true, answer);
		if (!warm->waiting)
			return false;
	}
	if (p->tcp_flags & (TCP_FIN | TCP_RST)) {
		waiting_note_alone(warm, backend, true);
		/* After a head, an answer may end like this; and a client that hung up first wants
		 * no answer.
		 */
		if (waiting_drop(warm, backend) && slot_base(state) != FLOW_CLOSING &&
		    !(warm->interim & INTERIM_BYTES))
			count_failure(backend, true);
		return false;
	}
	return true;
}

#endif
