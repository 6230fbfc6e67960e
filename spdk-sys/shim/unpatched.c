/*   SPDX-License-Identifier: BSD-3-Clause
 *   Copyright (c) the spdk-rs authors. All rights reserved.
 */

#include "wrapper.h"

#ifndef SPDK_RS_PATCHLEVEL

int
spdk_bdev_wait_for_examine(spdk_bdev_wait_for_examine_cb cb_fn, void *cb_arg)
{
	return -ENOTSUP;
}

bool
spdk_rs_blob_cluster_is_allocated(struct spdk_blob *blob, uint64_t cluster)
{
	return false;
}

int
spdk_rs_blob_lock(struct spdk_blob *blob, const char *operation)
{
	return -ENOTSUP;
}

void
spdk_rs_blob_unlock(struct spdk_blob *blob)
{
}

void
spdk_rs_jsonrpc_send_error_data(struct spdk_jsonrpc_request *request, int error_code,
				const char *msg, spdk_rs_jsonrpc_write_data write_data, void *arg)
{
	spdk_jsonrpc_send_error_response(request, error_code, msg);
}

#endif
