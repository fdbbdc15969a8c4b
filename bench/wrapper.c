// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Restores the packet, then tail-calls the program under test.
 *
 * BPF_PROG_TEST_RUN with repeat > 1 restores neither the bytes nor the length between repeats: an
 * encapsulating program would see its own output from the second repeat on.  Only what the program
 * changes is written again: the length, the first 16 bytes and the words of BENCH_RESTORE.  Storing
 * all of the packet would make the program's loads wait for stores, which does not happen with a
 * network card.
 *
 * -D constants: BENCH_LENGTH; BENCH_WORD0 and BENCH_WORD1 (the first 16 bytes); BENCH_RESTORE
 * (R32(offset, value) for each word that is changed); and for many flows BENCH_COUNTER (where the
 * counter is pinned), BENCH_FLOW_OFFSET (0: one flow), BENCH_FLOW_BASE, BENCH_FLOW_MASK and
 * BENCH_FLOW_SHIFT (log2 of the number of consecutive packets of one flow).
 */
#define R32(offset, value) *(u32 *)(data + (offset)) = (value);

BPF_PROG_ARRAY(target, 1);
/* Shared by the wrappers of one case, so a flow that is new to one program is new to each of them.
 */
BPF_TABLE_PINNED("array", int, u64, counter, 1, BENCH_COUNTER);

static __always_inline int restore(struct xdp_md *ctx)
{
	long length = (long)ctx->data_end - (long)ctx->data;
	void *data, *data_end;
	u64 *next, number;
	int zero = 0;

	if (bpf_xdp_adjust_head(ctx, length - BENCH_LENGTH))
		return -1;
	data = (void *)(long)ctx->data;
	data_end = (void *)(long)ctx->data_end;
	if (data + BENCH_LENGTH > data_end)
		return -1;
	((u64 *)data)[0] = BENCH_WORD0;
	((u64 *)data)[1] = BENCH_WORD1;
	BENCH_RESTORE
	if (BENCH_FLOW_OFFSET) {
		next = counter.lookup(&zero);
		if (!next)
			return -1;
		number = (*next)++ >> BENCH_FLOW_SHIFT;
		*(u32 *)(data + BENCH_FLOW_OFFSET) =
			__builtin_bswap32(BENCH_FLOW_BASE + (number & BENCH_FLOW_MASK));
	}
	return 0;
}

int bench(struct xdp_md *ctx)
{
	if (restore(ctx))
		return XDP_ABORTED;
	target.call(ctx, 0);
	return XDP_ABORTED;
}

/* The empty program: measures the wrapper's own cost. */
int nothing(struct xdp_md *ctx)
{
	return XDP_TX;
}
