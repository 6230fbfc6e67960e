/*   SPDX-License-Identifier: BSD-3-Clause
 *   Copyright (c) the spdk-rs authors. All rights reserved.
 */

/* How much I/O a bdev has done. */

#ifndef SPDK_SYS_SHIM_BDEV_STAT_H
#define SPDK_SYS_SHIM_BDEV_STAT_H

/** Adds up what all channels of a bdev have counted, those that are gone included. Meanwhile the bdev is
 * open, so that it can not go. To be called on an spdk_thread, which cb_fn is called on.
 * \param stat Must be zeroed, and live until the callback.
 * \return 0: cb_fn will be called, once; or a negative errno: it will not. -EINVAL: no such bdev. */
int shim_bdev_stat(const char *name, struct spdk_bdev_io_stat *stat,
		   void (*cb_fn)(void *cb_arg, int rc), void *cb_arg);

#endif
