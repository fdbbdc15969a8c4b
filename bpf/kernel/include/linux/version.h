/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* BCC's prelude compares versions to decide what to declare; the oldest kernel
 * that we support is enough for all that we use.
 */
#ifndef STEELYARD_LINUX_VERSION_H
#define STEELYARD_LINUX_VERSION_H

#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))
#define LINUX_VERSION_CODE KERNEL_VERSION(6, 1, 0)

#endif
