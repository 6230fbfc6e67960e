/*   SPDX-License-Identifier: BSD-3-Clause
 *   Copyright (c) the spdk-rs authors. All rights reserved.
 */

#include "wrapper.h"

/* In C, because SPDK sizes its spdk_bdev_io objects when the bdev layer starts: the module must be on the
 * list before that, and only a constructor is sure to be. */

static int
shim_bdev_module_init(void)
{
	return 0;
}

static int
shim_bdev_module_get_ctx_size(void)
{
	return SHIM_BDEV_IO_CTX_SIZE;
}

static struct spdk_bdev_module g_shim_bdev_module = {
	.name = "rust",
	.module_init = shim_bdev_module_init,
	.get_ctx_size = shim_bdev_module_get_ctx_size,
};

SPDK_BDEV_MODULE_REGISTER(rust, &g_shim_bdev_module)

struct spdk_bdev_module *
shim_bdev_module(void)
{
	return &g_shim_bdev_module;
}
