/*   SPDX-License-Identifier: BSD-3-Clause
 *   Copyright (c) the spdk-rs authors. All rights reserved.
 */

/* The bdev module that block devices written in Rust belong to. */

#ifndef SPDK_SYS_SHIM_BDEV_MODULE_H
#define SPDK_SYS_SHIM_BDEV_MODULE_H

enum {
	/** Where a channel's context begins, in bytes from the channel: what
	 * spdk_io_channel_get_ctx() adds, for callers that can not have it inlined. */
#ifdef SPDK_IO_CHANNEL_STRUCT_SIZE
	SHIM_IO_CHANNEL_SIZE = SPDK_IO_CHANNEL_STRUCT_SIZE,
#else
	SHIM_IO_CHANNEL_SIZE = sizeof(struct spdk_io_channel),
#endif
};

/** The module. It is on SPDK's list in every program that refers to this function. */
struct spdk_bdev_module *shim_bdev_module(void);

#endif
