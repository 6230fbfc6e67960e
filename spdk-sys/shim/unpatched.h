/*   SPDX-License-Identifier: BSD-3-Clause
 *   Copyright (c) the spdk-rs authors. All rights reserved.
 */

/* What the patches add, for an SPDK without them (SPDK_SYS_ALLOW_UNPATCHED): the same names, so that the
 * code above compiles and links. Each says that it is not supported. */

#ifndef SPDK_SYS_SHIM_UNPATCHED_H
#define SPDK_SYS_SHIM_UNPATCHED_H

typedef void (*spdk_bdev_wait_for_examine_cb)(void *arg);

/** \return -ENOTSUP; the callback is not called. */
int spdk_bdev_wait_for_examine(spdk_bdev_wait_for_examine_cb cb_fn, void *cb_arg);

/** \return false. Without spdk_rs_blob_lock() there is no reason to ask. */
bool spdk_rs_blob_cluster_is_allocated(struct spdk_blob *blob, uint64_t cluster);

/** \return -ENOTSUP. */
int spdk_rs_blob_lock(struct spdk_blob *blob, const char *operation);

void spdk_rs_blob_unlock(struct spdk_blob *blob);

typedef void (*spdk_rs_jsonrpc_write_data)(struct spdk_json_write_ctx *w, void *arg);

/** Sends the error without the data. */
void spdk_rs_jsonrpc_send_error_data(struct spdk_jsonrpc_request *request, int error_code,
				     const char *msg, spdk_rs_jsonrpc_write_data write_data,
				     void *arg);

#endif
