"""Small programs that prepare a packet in the kernel and then tail-call the balancer."""

from __future__ import annotations

from agent.dataplane import libbpf
from agent.dataplane.compile import Compiled
from agent.dataplane.objects import load_program

# Leaves less headroom than an outer header takes: the frame moves to the front of its page.
SQUEEZE = """
BPF_PROG_ARRAY(next, 1);

int squeeze(struct xdp_md *ctx)
{
	u8 *data, *end;

	if (bpf_xdp_adjust_head(ctx, -200))
		return XDP_ABORTED;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if (data + 200 + 54 > end)
		return XDP_ABORTED;
	__builtin_memcpy(data, data + 200, 54);
	next.call(ctx, 0);
	return XDP_ABORTED;
}
"""

# LB_EACH packets of each stranger, whose ports count up, and whose IPv4 addresses do after LB_PORTS
# of them; IP ids count up, too. The rest is that of the first packet, whatever the balancer has
# made of it.
FLOOD = """
struct headers {
	u8 bytes[54];
};
BPF_PROG_ARRAY(next, 1);
BPF_ARRAY(sent, u64, 1);
BPF_ARRAY(first, struct headers, 1);
BPF_ARRAY(length, u64, 1);

int flood(struct xdp_md *ctx)
{
	long now = (long)ctx->data_end - (long)ctx->data;
	u8 *data, *end;
	u32 zero = 0;
	u64 *count = sent.lookup(&zero), *whole = length.lookup(&zero), stranger;
	struct headers *headers = first.lookup(&zero);

	if (!count || !headers || !whole)
		return XDP_ABORTED;
	if (!*count)
		*whole = now;
	else if (now > *whole && bpf_xdp_adjust_head(ctx, now - (long)*whole))
		return XDP_ABORTED; /* from in front of a tunnel's packet */
	else if (now < *whole && bpf_xdp_adjust_tail(ctx, (long)*whole - now))
		return XDP_ABORTED; /* an answer has cut it off behind its headers */
	data = (u8 *)(long)ctx->data;
	end = (u8 *)(long)ctx->data_end;
	if (data + 54 > end)
		return XDP_ABORTED;
	if (*count)
		__builtin_memcpy(data, headers->bytes, sizeof(headers->bytes));
	else
		__builtin_memcpy(headers->bytes, data, sizeof(headers->bytes));
	stranger = *count / LB_EACH;
	*(u16 *)(data + 18) = __builtin_bswap16(*count);
	*(u32 *)(data + 26) = __builtin_bswap32(LB_FIRST + (u32)(stranger / LB_PORTS));
	*(u16 *)(data + 34) = __builtin_bswap16(1024 + stranger % 60000);
	(*count)++;
	next.call(ctx, 0);
	return XDP_ABORTED;
}
"""

# A list of clients over and over: (address, port << 16 | flags) in the order of the wire.
REPLAY = """
struct client {
	u32 address;
	u16 port;
	u16 flags;
};
BPF_PROG_ARRAY(next, 1);
BPF_ARRAY(clients, struct client, LB_CLIENTS);
BPF_ARRAY(sent, u64, 1);

int replay(struct xdp_md *ctx)
{
	u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct client *client;
	u32 index = 0;
	u64 *count = sent.lookup(&index);

	if (data + 54 > end || !count)
		return XDP_ABORTED;
	index = (*count)++ % LB_CLIENTS;
	client = clients.lookup(&index);
	if (!client)
		return XDP_ABORTED;
	*(u32 *)(data + 26) = client->address;
	*(u16 *)(data + 34) = client->port;
	data[47] = client->flags;
	next.call(ctx, 0);
	return XDP_ABORTED;
}
"""


def in_front_of(target: int, text: str, function: str, **definitions: str) -> Compiled:
    """The program of ``text``, which goes on to the program ``target``."""
    compiled = load_program(text, function, definitions)
    first = (0).to_bytes(4, "little")
    libbpf.map_update(compiled.tables["next"], first, target.to_bytes(4, "little"))
    return compiled
