// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* What any XDP balancer on a veth costs: checks for TCP, swaps in the other MAC, and sends the
 * frame back.
 *
 * -D constants: FLOOR_CLIENT (IPv4 address of the client, as a number), FLOOR_CLIENT_MAC and
 * FLOOR_BACKEND_MAC (six bytes each, as an initialiser).
 */
struct tcp4_frame {
	u8 to[6], from[6];
	__be16 eth_proto;
	u8 ip[9], l4_proto;
	__be16 checksum;
	__be32 saddr, daddr;
} __attribute__((packed));

int floor_balancer(struct xdp_md *ctx)
{
	const u8 client[6] = FLOOR_CLIENT_MAC, backend[6] = FLOOR_BACKEND_MAC;
	struct tcp4_frame *frame = (void *)(long)ctx->data;

	if ((void *)(frame + 1) > (void *)(long)ctx->data_end)
		return XDP_PASS;
	if (frame->eth_proto != __builtin_bswap16(0x0800) || frame->l4_proto != 6)
		return XDP_PASS;
	__builtin_memcpy(frame->from, frame->to, 6);
	if (frame->daddr == __builtin_bswap32(FLOOR_CLIENT))
		__builtin_memcpy(frame->to, client, 6);
	else
		__builtin_memcpy(frame->to, backend, 6);
	return XDP_TX;
}
