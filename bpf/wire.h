/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Packet headers as they are on the wire, without bit-fields. */
#ifndef STEELYARD_WIRE_H
#define STEELYARD_WIRE_H

#include <linux/types.h>

#define ETH_P_IPV4 0x0800
#define ETH_P_IPV6 0x86dd
#define ETH_P_VLAN 0x8100 /* IEEE 802.1Q */
#define ETH_P_QINQ 0x88a8 /* IEEE 802.1ad */
#define L4_ICMP 1
#define L4_IPIP 4 /* IPv4 in IP, RFC 2003 */
#define L4_TCP 6
#define L4_UDP 17
#define L4_IPV6 41 /* IPv6 in IP, RFC 2473 and RFC 4213 */
#define L4_ICMPV6 58
#define IPV6_EXT_HOPOPTS 0
#define IPV6_EXT_ROUTING 43
#define IPV6_EXT_FRAGMENT 44
#define IPV6_EXT_AUTH 51
#define IPV6_EXT_DSTOPTS 60

#define IPV4_DF 0x4000
#define IPV4_MF 0x2000
#define IPV4_OFFSET 0x1fff
#define IPV4_OPTION_END 0
#define IPV4_OPTION_NOP 1
#define IPV4_OPTION_LSRR 131
#define IPV4_OPTION_SSRR 137
#define IPV6_FRAG_OFFSET 0xfff8
#define IPV6_FRAG_MORE 0x0001

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_PSH 0x08
#define TCP_ACK 0x10

/* RFC 792, RFC 4443 */
#define ICMP_UNREACHABLE 3
#define ICMP_UNREACHABLE_PORT 3
#define ICMP_UNREACHABLE_FRAG 4
#define ICMP_SOURCE_QUENCH 4
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETER 12
#define ICMPV6_UNREACHABLE 1
#define ICMPV6_UNREACHABLE_PORT 4
#define ICMPV6_TOO_BIG 2
#define ICMPV6_TIME_EXCEEDED 3
#define ICMPV6_PARAMETER 4

#define bswap16(x) __builtin_bswap16(x)
#define bswap32(x) __builtin_bswap32(x)
#define be16(x) ((__be16)__builtin_bswap16(x))
#define be32(x) ((__be32)__builtin_bswap32(x))

struct eth_header {
	__u8 dest[6];
	__u8 source[6];
	__be16 eth_proto;
} __attribute__((packed, aligned(2)));

/* Comes after the Ethernet protocol that announces it. */
struct vlan_header {
	__be16 tci;
	__be16 eth_proto;
};

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

struct ipv6_fragment {
	__u8 next_header;
	__u8 reserved;
	__be16 offset; /* and, in the last bit, whether more follow */
	__be32 id;
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

struct icmp_header {
	__u8 type;
	__u8 code;
	__sum16 check;
	__be32 rest; /* too big: the MTU */
};

#endif
