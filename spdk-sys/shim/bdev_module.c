/*   SPDX-License-Identifier: BSD-3-Clause
 *   Copyright (c) the spdk-rs authors. All rights reserved.
 */

#include "wrapper.h"

/* In C, because SPDK goes through its list of modules when the bdev layer starts: a module must be on it
 * before that, and only a constructor is sure to be. */

static int
shim_bdev_module_init(void)
{
	return 0;
}

static struct spdk_bdev_module g_shim_bdev_module = {
	.name = "rust",
	.module_init = shim_bdev_module_init,
};

SPDK_BDEV_MODULE_REGISTER(rust, &g_shim_bdev_module)

struct spdk_bdev_module *
shim_bdev_module(void)
{
	return &g_shim_bdev_module;
}
