/*   SPDX-License-Identifier: BSD-3-Clause
 *   Copyright (c) the spdk-rs authors. All rights reserved.
 */

#include "wrapper.h"

const char *
shim_version_string(void)
{
	return SPDK_VERSION_STRING;
}
