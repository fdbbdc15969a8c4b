/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Packet headers as they stand on the wire, without bit-fields. */
#ifndef STEELYARD_WIRE_H
#define STEELYARD_WIRE_H

#include <linux/types.h>

#define ETH_P_IPV4 0x0800
#define ETH_P_IPV6 0x86dd
#define L4_IPIP 4 /* IPv4 in IP, RFC 2003 */
#define L4_TCP 6
#define L4_UDP 17
#define L4_IPV6 41 /* IPv6 in IP, RFC 2473 and RFC 4213 */
#define IPV6_EXT_HOPOPTS 0
#define IPV6_EXT_ROUTING 43
#define IPV6_EXT_FRAGMENT 44
#define IPV6_EXT_AUTH 51
#define IPV6_EXT_DSTOPTS 60

#define IPV4_DF 0x4000
#define IPV4_MF 0x2000
#define IPV4_OFFSET 0x1fff

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

#define bswap16(x) __builtin_bswap16(x)
#define be16(x) ((__be16)__builtin_bswap16(x))

struct eth_header {
	__u8 dest[6];
	__u8 source[6];
	__be16 eth_proto;
} __attribute__((packed, aligned(2)));

struct ipv4_header {
	__u8 version_ihl;
	__u8 tos;
	__be16 total_len;
	__be16 id;
	__be16 frag; /* flags and offset */
	__u8 ttl;
	__u8 l4_proto;
	__sum16 check;
	__be32 saddr;
	__be32 daddr;
};

struct ipv6_header {
	__be32 version_class_label;
	__be16 payload_len;
	__u8 next_header;
	__u8 hop_limit;
	__be32 saddr[4];
	__be32 daddr[4];
};

struct tcp_header {
	__be16 sport;
	__be16 dport;
	__be32 seq;
	__be32 ack;
	__u8 offset; /* upper four bits, in words */
	__u8 flags;
	__be16 window;
	__sum16 check;
	__be16 urgent;
};

struct udp_header {
	__be16 sport;
	__be16 dport;
	__be16 len;
	__sum16 check;
};

#endif
