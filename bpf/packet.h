/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the walk knows of the packet that it processes. */
#ifndef STEELYARD_PACKET_H
#define STEELYARD_PACKET_H

#include "wire.h"

/* For an ICMP error, addresses, ports and protocol are those of the flow that it is about, as if it
 * were the next packet that the receiver of the quoted packet sends.
 */
struct packet {
	__be32 saddr[4]; /* IPv4: word 0, the rest 0 */
	__be32 daddr[4];
	__be16 sport;
	__be16 dport;
	__u32 len; /* of the IP packet, header included */
	__u32 seq; /* TCP */
	__u32 ack;
	__u32 payload_len; /* of TCP or UDP */
	__be32 fragment_id;
	__u16 l3_off;      /* from the start of the frame */
	__u16 l4_off;      /* from the IP header */
	__u16 payload_off; /* from the IP header; ICMP error: the end of the quoted ports */
	__u16 quote_off;   /* ICMP error: the quoted IP header, from the IP header; else 0 */
	__u8 family;       /* 4 or 6 */
	__u8 l4_proto;
	__u8 tcp_flags; /* 0 for UDP */
	__u8 tos;       /* DSCP and ECN */
	__u8 ttl;       /* or hop limit */
	__u8 is_fragment;
	__u8 is_later_fragment; /* has no ports */
	__u8 has_extension;     /* IPv6: more extension headers than we follow */
	__u8 is_vip;            /* the destination is a VIP, even if no service is found */
	__u8 may_be_reply;      /* the source may be a backend of nat */
	__u8 from_peer;         /* another balancer has passed it on */
	__u8 is_blocked;        /* its source is blocked */
	__u8 nat_source;        /* 1 + number of the fullnat source that it is sent to; 0: none */
};

/* Bounds an offset.  The verifier has to see the bound where the offset is used, and the compiler,
 * which knows the bound already, must not remove the test.
 */
#define bounded(offset, most)                      \
	({                                         \
		__u32 __offset = (offset);         \
		asm volatile("" : "+r"(__offset)); \
		if (__offset > (most))             \
			__offset = (most);         \
		__offset;                          \
	})

/* The IP header comes after the Ethernet header and its VLAN tags. */
#define L3_OFF_MAX (sizeof(struct eth_header) + 2 * sizeof(struct vlan_header))
/* A bound for the verifier: IPv4 options end at 60; longer IPv6 extension headers are refused. */
#define L4_OFF_MAX 256
#define PAYLOAD_OFF_MAX (L4_OFF_MAX + 60)

static __always_inline void *packet_l3(void *data, const struct packet *p)
{
	return data + bounded(p->l3_off, L3_OFF_MAX);
}

static __always_inline void *packet_l4(void *data, const struct packet *p)
{
	return data + bounded(p->l3_off + p->l4_off, L3_OFF_MAX + L4_OFF_MAX);
}

static __always_inline void *packet_payload(void *data, const struct packet *p)
{
	return data + bounded(p->l3_off + p->payload_off, L3_OFF_MAX + PAYLOAD_OFF_MAX);
}

#endif
