/*   SPDX-License-Identifier: BSD-3-Clause
 *   Copyright (c) the spdk-rs authors. All rights reserved.
 */

#include "wrapper.h"

struct shim_stat_req {
	struct spdk_bdev_desc *desc;
	struct spdk_bdev_io_stat *stat;
	void (*cb_fn)(void *cb_arg, int rc);
	void *cb_arg;
};

static void
shim_stat_event(enum spdk_bdev_event_type type, struct spdk_bdev *bdev, void *event_ctx)
{
	/* A removal waits for the close, which is soon. */
}

static void
shim_stat_done(struct spdk_bdev *bdev, struct spdk_bdev_io_stat *stat, void *cb_arg, int rc)
{
	struct shim_stat_req *req = cb_arg;

	spdk_bdev_close(req->desc);
	req->cb_fn(req->cb_arg, rc);
	free(req);
}

static void
shim_stat_start(void *arg)
{
	struct shim_stat_req *req = arg;

	spdk_bdev_get_device_stat(spdk_bdev_desc_get_bdev(req->desc), req->stat, shim_stat_done, req);
}

int
shim_bdev_stat(const char *name, struct spdk_bdev_io_stat *stat,
	       void (*cb_fn)(void *cb_arg, int rc), void *cb_arg)
{
	struct shim_stat_req *req;
	int rc;

	req = calloc(1, sizeof(*req));
	if (req == NULL) {
		return -ENOMEM;
	}
	rc = spdk_bdev_open_ext(name, false, shim_stat_event, NULL, &req->desc);
	if (rc != 0) {
		free(req);
		return rc;
	}
	req->stat = stat;
	req->cb_fn = cb_fn;
	req->cb_arg = cb_arg;
	/* A channel that has been put hands its numbers to the bdev with a message, too: what this thread
	 * has closed is to be counted. */
	rc = spdk_thread_send_msg(spdk_get_thread(), shim_stat_start, req);
	if (rc != 0) {
		spdk_bdev_close(req->desc);
		free(req);
	}

	return rc;
}
