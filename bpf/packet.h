/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the walk knows of the packet in hand. */
#ifndef STEELYARD_PACKET_H
#define STEELYARD_PACKET_H

#include "wire.h"

struct packet {
	__be32 saddr[4]; /* IPv4: word 0, the rest 0 */
	__be32 daddr[4];
	__be16 sport;
	__be16 dport;
	__u16 len;    /* of the IP packet, header included */
	__u16 l4_off; /* from the start of the frame */
	__u8 family;  /* 4 or 6 */
	__u8 l4_proto;
	__u8 tcp_flags; /* 0 for UDP */
	__u8 tos;       /* DSCP and ECN */
	__u8 is_fragment;
	__u8 is_later_fragment; /* has no ports */
	__u8 has_payload;
	__u8 has_extension; /* IPv6: something stands before TCP or UDP */
};

#endif
