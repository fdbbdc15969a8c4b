// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* For `hook: external`, behind a libxdp dispatcher: hands each packet to the balancer NAME.  The
 * agent keeps its newest program in slot 0 of the array `entry`.  While there is none, packets pass
 * on, as do packets that are not for a VIP.  Needs clang, libbpf-dev, and libxdp 1.5.5 or newer;
 * see docs/operations.md:
 *
 *   clang -O2 -g -target bpf -c xdp-entry.bpf.c -o xdp-entry.o
 *   xdp-loader load --pin-path /sys/fs/bpf/steelyard/NAME eth0 xdp-entry.o
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <xdp/xdp_helpers.h>

struct {
	__uint(priority, 50);
	__uint(XDP_PASS, 1); /* the next program of the dispatcher sees what we pass */
} XDP_RUN_CONFIG(steelyard);

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} entry SEC(".maps");

SEC("xdp")
int steelyard(struct xdp_md *ctx)
{
	bpf_tail_call(ctx, &entry, 0);
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
