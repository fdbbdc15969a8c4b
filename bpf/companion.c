// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Runs on servers: turns the ACKs that answer SYN cookies of balancers (cookie.h) into connections.
 * It is attached to tc ingress of the interfaces by which the balancers' packets come: the network
 * card, and the tunnel devices.
 *
 * If the number that an ACK acknowledges is a cookie, and there is a listener and no connection,
 * the ACK is handed to the listener together with the options of its SYN.  From there on it is a
 * connection as any other, and the kernel checks it as it would check one of its own cookies.  Any
 * other packet passes untouched.
 */
#include "abi.h"
#include "cookie.h"

#define ACT_PASS (-1) /* TC_ACT_UNSPEC: go on with the next filter */

/* `lb-agent companion` writes these before it attaches the program. */
struct vip_key {
	__be32 addr[4]; /* IPv4: word 0, the rest 0 */
};
BPF_HASH(companion_vips, struct vip_key, u8, 4096);
BPF_F_TABLE("array", u32, struct cookie_secret, cookie_secret, 1, BPF_F_MMAPABLE);

struct companion_counters {
	__u64 made;    /* connections made */
	__u64 refused; /* our cookies that the kernel did not accept */
	__u64 alone;   /* our cookies for which there was no listener */
};
BPF_F_TABLE("array", u32, struct companion_counters, companion_count, 1, BPF_F_MMAPABLE);

/* include/net/tcp.h */
struct tcp_req_attrs {
	__u32 rcv_tsval;
	__u32 rcv_tsecr;
	__u16 mss;
	__u8 rcv_wscale;
	__u8 snd_wscale;
	__u8 ecn_ok;
	__u8 wscale_ok;
	__u8 sack_ok;
	__u8 tstamp_ok;
	__u8 usec_ts_ok;
	__u8 reserved[3];
};

/* Helpers that BCC does not know, by number. */
static void *(*skc_lookup_tcp)(void *ctx, void *tuple, __u32 size, __u64 netns,
			       __u64 flags) = (void *)99;
static int (*sk_release)(void *sk) = (void *)86;
static void *(*skc_to_tcp_sock)(void *sk) = (void *)137;
static int (*load_bytes_relative)(void *ctx, __u32 offset, void *to, __u32 len,
				  __u32 header) = (void *)68;
#define HEADER_NETWORK 1 /* BPF_HDR_START_NET: tunnel devices have no Ethernet header */
/* A kernel function (kfunc), whose number is put in when the program is loaded (companion.py). */
static int (*sk_assign_tcp_reqsk)(void *ctx, void *sk, void *attrs,
				  int size) = (void *)LB_ASSIGN_REQSK;

#define SOCK_LISTEN 10 /* TCP_LISTEN */
#define OPTIONS_MAX 40
#define OPTIONS_ROUNDS 12 /* options; a timestamp comes early */

/* Per-CPU memory for the search for options: the verifier would track each value on the stack. */
struct companion_room {
	__u8 options[64]; /* padded with zeros */
	__u64 at;
	__u64 found; /* position of the timestamps + 1; 0: not found yet */
};
BPF_PERCPU_ARRAY(companion_rooms, struct companion_room, 1);

/* An ACK, and its addresses. */
struct ack {
	__u8 family;
	__u8 l4_off; /* from the network header */
	__be32 saddr[4];
	struct vip_key vip;
	struct tcp_header tcp;
};

static __always_inline bool read_ipv4(struct __sk_buff *ctx, struct ack *ack)
{
	struct ipv4_header ip;

	if (load_bytes_relative(ctx, 0, &ip, sizeof(ip), HEADER_NETWORK) ||
	    ip.version_ihl != 0x45 || ip.l4_proto != L4_TCP ||
	    ip.frag & be16(IPV4_MF | IPV4_OFFSET))
		return false;
	ack->family = 4;
	ack->l4_off = sizeof(ip);
	ack->saddr[0] = ip.saddr;
	ack->vip.addr[0] = ip.daddr;
	return true;
}

static __always_inline bool read_ipv6(struct __sk_buff *ctx, struct ack *ack)
{
	struct ipv6_header ip;

	if (load_bytes_relative(ctx, 0, &ip, sizeof(ip), HEADER_NETWORK) ||
	    ip.next_header != L4_TCP)
		return false;
	ack->family = 6;
	ack->l4_off = sizeof(ip);
	__builtin_memcpy(ack->saddr, ip.saddr, sizeof(ack->saddr));
	__builtin_memcpy(ack->vip.addr, ip.daddr, sizeof(ack->vip.addr));
	return true;
}

static __always_inline bool read_ack(struct __sk_buff *ctx, struct ack *ack)
{
	if (ctx->protocol == be16(ETH_P_IPV4)) {
		if (!read_ipv4(ctx, ack))
			return false;
	} else if (ctx->protocol != be16(ETH_P_IPV6) || !read_ipv6(ctx, ack)) {
		return false;
	}
	return !load_bytes_relative(ctx, ack->l4_off, &ack->tcp, sizeof(ack->tcp),
				    HEADER_NETWORK) &&
	       (ack->tcp.flags & (TCP_SYN | TCP_RST | TCP_ACK)) == TCP_ACK;
}

/* Reads the client's TCP timestamps, if it sends any. */
static __always_inline void read_timestamps(struct __sk_buff *ctx, const struct ack *ack,
					    struct tcp_req_attrs *attrs)
{
	__u64 len = (__u64)(ack->tcp.offset >> 4) * 4 - sizeof(ack->tcp);
	__u32 zero = 0;
	struct companion_room *room = companion_rooms.lookup(&zero);
	__be32 words[2];

	/* The verifier has to see this bound; the compiler would transform it. */
	asm volatile("" : "+r"(len));
	if (!room || len > OPTIONS_MAX || len < 1)
		return;
	__builtin_memset(room, 0, sizeof(*room));
	if (load_bytes_relative(ctx, ack->l4_off + sizeof(ack->tcp), room->options, len,
				HEADER_NETWORK))
		return;
	for (int i = 0; i < OPTIONS_ROUNDS; i++) {
		__u64 at = room->at & 63;
		__u8 kind = room->options[at], size = room->options[(at + 1) & 63];

		asm volatile("" ::: "memory");
		if (kind == TCP_OPTION_END || at >= OPTIONS_MAX)
			break;
		if (kind == TCP_OPTION_NOP || !size)
			size = 1;
		if (kind == TCP_OPTION_TIMESTAMPS && size == 10)
			room->found = at + 1;
		room->at = at + size;
		asm volatile("" ::: "memory");
	}
	if (!room->found || room->found + 9 > len)
		return;
	if (load_bytes_relative(ctx, ack->l4_off + sizeof(ack->tcp) + (room->found & 63) + 1, words,
				sizeof(words), HEADER_NETWORK))
		return;
	attrs->tstamp_ok = 1;
	attrs->rcv_tsval = bswap32(words[0]);
	attrs->rcv_tsecr = bswap32(words[1]);
}

static __always_inline void *find_socket(struct __sk_buff *ctx, const struct ack *ack)
{
	struct bpf_sock_tuple tuple = {};

	if (ack->family == 4) {
		tuple.ipv4.saddr = ack->saddr[0];
		tuple.ipv4.daddr = ack->vip.addr[0];
		tuple.ipv4.sport = ack->tcp.sport;
		tuple.ipv4.dport = ack->tcp.dport;
		return skc_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	}
	__builtin_memcpy(tuple.ipv6.saddr, ack->saddr, sizeof(tuple.ipv6.saddr));
	__builtin_memcpy(tuple.ipv6.daddr, ack->vip.addr, sizeof(tuple.ipv6.daddr));
	tuple.ipv6.sport = ack->tcp.sport;
	tuple.ipv6.dport = ack->tcp.dport;
	return skc_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
}

int companion(struct __sk_buff *ctx)
{
	struct companion_counters *count;
	struct tcp_req_attrs attrs = {};
	struct cookie_secret *secret;
	struct ack ack = {};
	struct bpf_sock *found;
	__u32 zero = 0, cookie;
	void *listener;

	if (!read_ack(ctx, &ack) || !companion_vips.lookup(&ack.vip))
		return ACT_PASS;
	secret = cookie_secret.lookup(&zero);
	count = companion_count.lookup(&zero);
	cookie = bswap32(ack.tcp.ack) - 1;
	if (!secret || !count ||
	    !cookie_is_ours(secret, ack.saddr, ack.tcp.sport, ack.tcp.dport,
			    bswap32(ack.tcp.seq) - 1, cookie))
		return ACT_PASS;
	attrs.mss = cookie_mss(ack.family, cookie >> 5 & 3);
	attrs.sack_ok = !!(cookie & COOKIE_SACK);
	attrs.wscale_ok = (cookie & 15) != COOKIE_NO_SCALE;
	attrs.snd_wscale = attrs.wscale_ok ? cookie & 15 : 0;
	attrs.rcv_wscale = attrs.wscale_ok ? COOKIE_OUR_SCALE : 0;
	read_timestamps(ctx, &ack, &attrs);
	found = find_socket(ctx, &ack);
	if (!found) {
		__sync_fetch_and_add(&count->alone, 1);
		return ACT_PASS;
	}
	/* The client's first data repeats the cookie; by then the lookup finds the connection. */
	listener = found->state == SOCK_LISTEN ? skc_to_tcp_sock(found) : NULL;
	if (listener) {
		if (sk_assign_tcp_reqsk(ctx, listener, &attrs, sizeof(attrs)))
			__sync_fetch_and_add(&count->refused, 1);
		else
			__sync_fetch_and_add(&count->made, 1);
	}
	sk_release(found);
	return ACT_PASS;
}
