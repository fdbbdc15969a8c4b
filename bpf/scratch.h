/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a walk notes down, in memory of the CPU.
 *
 * Not on the stack, which holds 512 bytes, and where the verifier follows every
 * value: it would walk on separately for each of the offsets that a packet can
 * have.  Of what it reads here it knows nothing, so all ways join again.
 */
#ifndef STEELYARD_SCRATCH_H
#define STEELYARD_SCRATCH_H

#include "maps.h"
#include "packet.h"

/* Addresses and ports that a packet is to have. */
struct rewrite {
	__be32 saddr[4];
	__be32 daddr[4];
	__be16 sport;
	__be16 dport;
};

/* Where a flow is recorded, or could be. */
struct flow_place {
	__u32 index; /* of the bucket */
	__u32 tag;
	__u32 way;    /* FLOW_WAYS: not recorded */
	__u32 now;    /* ticks */
	__u64 word;   /* what the slot held when we looked */
	__u64 is_new; /* this packet has it recorded */
	__u64 next;   /* the state that it is to have */
};

/* The next hop, and how its segment is tagged: as in struct backend and flow_warm,
 * so that three words are copied.
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
	/* fullnat: of the backend's address and port (struct origin); copied as two words */
	__u16 nat_blocks[NAT_SOURCES] __attribute__((aligned(8)));
	__u32 ifindex;      /* 0: out where it came in */
	__u32 acknowledged; /* REASON_CHALLENGED: by the answer */
	__u32 service;      /* ids; 0: none */
	__u32 backend;
	__u32 named; /* by the QUIC packet itself; 0: none */
	/* of a new flow: from where its backend is drawn; copied as one word */
	struct zone_ring ring __attribute__((aligned(8)));
	__u8 forward;     /* enum forward */
	__u8 is_reply;    /* of the backend, to the client */
	__u8 hide_source; /* fullnat, an ICMP error: nor may it show who has noticed it */
	__u8 is_over;     /* REASON_NO_FLOW: enum over */
	__u8 challenge;   /* REASON_CHALLENGED, REASON_VERIFIED or 0 */
	__u8 opens;       /* a flow, if it is of none */
	__u8 refused;     /* why its source is not wanted, or 0 */
	__u8 reason;      /* why it goes nowhere; else 0 */
	__u8 resets;      /* REASON_NO_BACKEND: its sender is told */
	__u16 mtu;        /* REASON_TOO_BIG: what its sender is told; 0: nothing */
	__u8 begins;      /* a connection, though it is no SYN: it answers a SYN cookie */
};

/* Whether the sender of a packet of no flow is to learn that its connection is over. */
enum over {
	OVER_UNTOLD = 0,
	OVER_KNOWN = 1, /* it was here */
	OVER_UNKNOWN = 2,
	OVER_NOT = 3, /* it has not begun, and its sender is asked to show itself (challenge.h) */
	OVER_COOKIE = 4, /* likewise, and its SYN is answered for the server (cookie.h) */
};

/* What was last found under an address, a port and a protocol (service.h). */
#define FOUND_SERVICES 256
struct found_service {
	__u32 version; /* of the services then: the low half */
	__u32 tail;    /* port, protocol and family; 0: nothing was */
	__be32 vip[4];
	struct service service; /* id 0: there is none */
};
_Static_assert(sizeof(struct found_service) == 64, "of the size of a cache line");

/* limit.h: what somebody's slot is to hold. */
struct limit_note {
	__u64 word;
	__u32 index; /* of the bucket */
	__u32 way;
};

/* synack.h: the options of a SYN, and what it is answered. */
struct synack {
	__u64 at; /* of the next option */
	__u32 mss;
	__u32 scale; /* COOKIE_NO_SCALE: none */
	__u32 sack;
	__u32 has_stamp;
	__be32 stamp; /* of the client */
	__u32 cookie;
	__u32 len; /* of the options below, in bytes */
	__be32 options[5];
	__u8 asked[64]; /* as they stand in the SYN, with zeros behind */
};

struct scratch {
	struct found_service found[FOUND_SERVICES];
	struct service service; /* that the packet is for, where it is not found by its port */
	struct service picked;  /* likewise, while a backend is picked */
	struct packet packet;
	struct flow_place place;
	struct route route;
	struct event event;
	struct fragment_key fragment_key;
	struct fragment fragment;
	__u64 option; /* guard.h: the offset of the next IPv4 option */
	__u64 fence;  /* service.h */
	__u64 draw;   /* select.h: the next draw, and the hash for it */
	__u64 hash;
	__u32 lists; /* sources.h: the lists that hold the source, a bit each */
	__u32 unused;
	__u64 limits; /* limit.h: what is exceeded, bits by enum limit */
	struct limit_note limit_notes[LIMIT_RATES];
	struct synack synack;
	__u64 text_seen; /* http.h: the newest eight bytes; where we are, and of a chunk */
	__u32 text_at;
	__u32 text_digits;
	__u32 text_size;
	__u8 text_begins; /* a head, with this segment */
	__u8 text_in_head;
	__u8 text_has_head;
	__u8 text_is_chunked;
	__u32 text_began;
};

/* One element of each CPU, for the packet in hand. */
BPF_PERCPU_ARRAY(scratch, struct scratch, 1);

/* Between two steps: the compiler keeps nothing that it read of the packet, so the
 * verifier sees the same state whatever way the last step took.
 */
#define step_ends() asm volatile("" ::: "memory")

static __always_inline struct scratch *scratch_room(void)
{
	__u32 zero = 0;

	return scratch.lookup(&zero);
}

#endif
