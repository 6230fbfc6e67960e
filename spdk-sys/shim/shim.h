/*   SPDX-License-Identifier: BSD-3-Clause
 *   Copyright (c) the spdk-rs authors. All rights reserved.
 */

#ifndef SPDK_SYS_SHIM_H
#define SPDK_SYS_SHIM_H

/** SPDK_VERSION_STRING of the headers that the shim was compiled with. */
const char *shim_version_string(void);

#endif
