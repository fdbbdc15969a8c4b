/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What BCC includes before everything else: the few names of a configured
 * kernel tree that its prelude needs.
 */
#ifndef STEELYARD_LINUX_KCONFIG_H
#define STEELYARD_LINUX_KCONFIG_H

#include <linux/types.h>

#define CONFIG_BPF_SYSCALL 1
#if defined(__TARGET_ARCH_arm64)
#define CONFIG_ARM64 1
#else
#define CONFIG_X86_64 1
#endif

typedef __s8 s8;
typedef __u8 u8;
typedef __s16 s16;
typedef __u16 u16;
typedef __s32 s32;
typedef __u32 u32;
typedef __s64 s64;
typedef __u64 u64;

typedef _Bool bool;
#define true 1
#define false 0

typedef unsigned long size_t;
typedef unsigned long uintptr_t;

#define NULL ((void *)0)
#define PAGE_SIZE 4096

/* nodebug: the compiler takes a quarter less time, and its code is the same to the byte.  The
 * verifier then names no lines of ours; to see them, take the word away.
 */
#define __always_inline inline __attribute__((always_inline, nodebug))

struct pt_regs;

#endif
