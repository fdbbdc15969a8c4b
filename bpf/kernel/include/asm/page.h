/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Empty: BCC's prelude asks for it, and nothing of it is used. */
