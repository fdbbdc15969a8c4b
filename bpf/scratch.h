/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a walk notes down, in per-CPU memory.
 *
 * Not on the stack, which has only 512 bytes, and where the verifier tracks every value: it would
 * follow the rest of the walk separately for each offset that a packet can have.  Of values that it
 * reads from this memory it knows nothing, so all its paths join again.
 */
#ifndef STEELYARD_SCRATCH_H
#define STEELYARD_SCRATCH_H

#include "maps.h"
#include "packet.h"

/* The addresses and ports to rewrite a packet to. */
struct rewrite {
	__be32 saddr[4];
	__be32 daddr[4];
	__be16 sport;
	__be16 dport;
};

/* Where a flow is recorded, or may be recorded. */
struct flow_place {
	__u32 index; /* of the bucket */
	__u32 tag;
	__u32 way;    /* FLOW_WAYS: not recorded */
	__u32 now;    /* ticks */
	__u64 word;   /* what the slot held when we read it */
	__u64 is_new; /* this packet recorded the flow */
	__u64 next;   /* the state to move the flow to */
};

/* The next hop and the VLAN tags for it.  Laid out as in struct backend and struct flow_warm, so it
 * is copied as three words.
 */
struct hop {
	__u8 mac[6];
	__u8 source_mac[6];
	__be16 vlan[4]; /* protocol and control information of each tag, outer first */
	__u8 tags;
	__u8 unused[3];
} __attribute__((aligned(8)));
_Static_assert(sizeof(struct hop) == 24, "three words");

/* Where the packet goes, and how. */
struct route {
	struct hop hop;
	struct rewrite to; /* nat, fullnat */
	/* fullnat: for the backend's address and port (struct origin); copied as two words */
	__u16 nat_blocks[NAT_SOURCES] __attribute__((aligned(8)));
	__u32 ifindex;       /* 0: send out by the interface that the packet came in by */
	__u32 challenge_ack; /* REASON_CHALLENGED: the number that our ACK acknowledges */
	__u32 service;       /* ids; 0: none */
	__u32 backend;
	__u32 quic_backend; /* the backend that the QUIC packet itself names; 0: none */
	/* new flow: the ring that its backend is drawn from; copied as one word */
	struct zone_ring ring __attribute__((aligned(8)));
	__u8 forward;        /* enum forward */
	__u8 is_reply;       /* a packet from the backend to the client */
	__u8 hide_source;    /* fullnat, ICMP error: hide the address of the reporting host, too */
	__u8 tcp_reply;      /* what a TCP sender without a flow is sent: enum tcp_reply */
	__u8 challenge;      /* REASON_CHALLENGED, REASON_VERIFIED or 0 */
	__u8 may_open;       /* a packet without a flow may open one */
	__u8 refusal;        /* the reason for which its source is refused, or 0 */
	__u8 reason;         /* why the packet is not forwarded; else 0 */
	__u8 sends_reset;    /* REASON_NO_BACKEND: reply with RST or ICMP unreachable */
	__u16 mtu;           /* REASON_TOO_BIG: the MTU to report to the sender; 0: do not report */
	__u8 answers_cookie; /* not a SYN, but it begins a connection: it answers a SYN cookie */
};

/* What to send to the sender of a dropped TCP packet that has no flow. */
enum tcp_reply {
	TCP_REPLY_NONE = 0,
	/* its flow was recorded here and is over: RST */
	TCP_REPLY_RST = 1,
	/* the connection is unknown: RST, within the budget (budget.h) */
	TCP_REPLY_RST_LIMITED = 2,
	/* the connection has not begun: ACK, to challenge the client (challenge.h) */
	TCP_REPLY_CHALLENGE = 3,
	/* likewise, but SYN-ACK with a cookie, in the server's name (cookie.h) */
	TCP_REPLY_COOKIE = 4,
};

/* The cached result of a service lookup by address, port and protocol (service.h). */
#define FOUND_SERVICES 256
struct found_service {
	__u32 version; /* of the services at that time: the low half */
	__u32 tail;    /* port, protocol and family; 0: this entry is unused */
	__be32 vip[4];
	struct service service; /* id 0: there is no such service */
};
_Static_assert(sizeof(struct found_service) == 64, "of the size of a cache line");

/* limit.h: what to write into the slot of a source, network or service. */
struct limit_note {
	__u64 word;
	__u32 index; /* of the bucket */
	__u32 way;
};

/* synack.h: the options of a SYN, and those of our SYN-ACK. */
struct synack {
	__u64 at; /* offset of the next option */
	__u32 mss;
	__u32 scale; /* COOKIE_NO_SCALE: none */
	__u32 sack;
	__u32 has_stamp;
	__be32 stamp; /* the client's timestamp */
	__u32 cookie;
	__u32 len; /* of the options below, in bytes */
	__be32 options[5];
	__u8 asked[64]; /* the SYN's options as they are on the wire, padded with zeros */
};

struct scratch {
	struct found_service found[FOUND_SERVICES];
	struct service service; /* of the packet, where it is not an entry of `found` */
	struct service picked;  /* of the packet, while a backend is picked */
	struct packet packet;
	struct flow_place place;
	struct route route;
	struct event event;
	struct fragment_key fragment_key;
	struct fragment fragment;
	struct held_key held_key;
	struct held_syn held_syn;
	__u64 option; /* guard.h: offset of the next IPv4 option */
	__u64 fence;  /* service.h: for a full barrier */
	__u64 draw;   /* select.h: number of the next draw, and the hash for it */
	__u64 hash;
	__u32 lists; /* sources.h: one bit for each list that holds the source */
	__u32 unused;
	__u64 limits; /* limit.h: the limits that are exceeded, bits by enum limit */
	struct limit_note limit_notes[LIMIT_RATES];
	struct synack synack;
	__u64 text_seen; /* http.h: the newest eight bytes, the position, the current chunk */
	__u32 text_at;
	__u32 text_digits;
	__u32 text_size;
	__u8 text_begins; /* a head begins with this segment */
	__u8 text_in_head;
	__u8 text_has_head;
	__u8 text_is_chunked;
	__u32 text_began;
};

/* One element per CPU, for the packet being processed. */
BPF_PERCPU_ARRAY(scratch, struct scratch, 1);

/* Ends a step: the compiler forgets what it has read of the packet, so the verifier sees the same
 * state whichever path the step took.
 */
#define step_ends() asm volatile("" ::: "memory")

static __always_inline struct scratch *scratch_room(void)
{
	__u32 zero = 0;

	return scratch.lookup(&zero);
}

#endif
