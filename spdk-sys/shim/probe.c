/*   SPDX-License-Identifier: BSD-3-Clause
 *   Copyright (c) the spdk-rs authors. All rights reserved.
 */

/* Only expanded, never compiled: see build/probe.rs. */

#include "spdk/version.h"
#include "spdk/config.h"
#if __has_include("spdk/spdk_rs.h")
#include "spdk/spdk_rs.h"
#endif

spdk_sys_probe MAJOR = SPDK_VERSION_MAJOR
spdk_sys_probe MINOR = SPDK_VERSION_MINOR
spdk_sys_probe PATCH = SPDK_VERSION_PATCH
spdk_sys_probe PATCHLEVEL = SPDK_RS_PATCHLEVEL
spdk_sys_probe CONFIG_ARCH = SPDK_CONFIG_ARCH
spdk_sys_probe CONFIG_ASAN = SPDK_CONFIG_ASAN
spdk_sys_probe CONFIG_COVERAGE = SPDK_CONFIG_COVERAGE
spdk_sys_probe CONFIG_CRYPTO = SPDK_CONFIG_CRYPTO
spdk_sys_probe CONFIG_DEBUG = SPDK_CONFIG_DEBUG
spdk_sys_probe CONFIG_DPDK_DIR = SPDK_CONFIG_DPDK_DIR
spdk_sys_probe CONFIG_ENV = SPDK_CONFIG_ENV
spdk_sys_probe CONFIG_FC = SPDK_CONFIG_FC
spdk_sys_probe CONFIG_ISAL = SPDK_CONFIG_ISAL
spdk_sys_probe CONFIG_LTO = SPDK_CONFIG_LTO
spdk_sys_probe CONFIG_NVME_CUSE = SPDK_CONFIG_NVME_CUSE
spdk_sys_probe CONFIG_PGO_CAPTURE = SPDK_CONFIG_PGO_CAPTURE
spdk_sys_probe CONFIG_RAID5 = SPDK_CONFIG_RAID5
spdk_sys_probe CONFIG_RDMA = SPDK_CONFIG_RDMA
spdk_sys_probe CONFIG_REDUCE = SPDK_CONFIG_REDUCE
spdk_sys_probe CONFIG_SHARED = SPDK_CONFIG_SHARED
spdk_sys_probe CONFIG_TSAN = SPDK_CONFIG_TSAN
spdk_sys_probe CONFIG_UBSAN = SPDK_CONFIG_UBSAN
spdk_sys_probe CONFIG_URING = SPDK_CONFIG_URING
spdk_sys_probe CONFIG_VTUNE = SPDK_CONFIG_VTUNE
