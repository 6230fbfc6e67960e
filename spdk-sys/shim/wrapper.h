/*   SPDX-License-Identifier: BSD-3-Clause
 *   Copyright (c) the spdk-rs authors. All rights reserved.
 */

/* Everything that the bindings are made from: SPDK's public headers, those internal ones that a target
 * needs (logical volume stores, the bdev modules' own create and delete functions), and our shim. */

#include "spdk/stdinc.h"

#include "spdk/bdev.h"
#include "spdk/bdev_module.h"
#include "spdk/bdev_zone.h"
#include "spdk/blob.h"
#include "spdk/blob_bdev.h"
#include "spdk/config.h"
#include "spdk/cpuset.h"
#include "spdk/dif.h"
#include "spdk/env.h"
#include "spdk/env_dpdk.h"
#include "spdk/event.h"
#include "spdk/histogram_data.h"
#include "spdk/json.h"
#include "spdk/jsonrpc.h"
#include "spdk/log.h"
#include "spdk/lvol.h"
#include "spdk/notify.h"
#include "spdk/nvme.h"
#include "spdk/nvmf.h"
#include "spdk/nvmf_transport.h"
#include "spdk/rpc.h"
#include "spdk/sock.h"
#if __has_include("spdk/spdk_rs.h")
#include "spdk/spdk_rs.h"
#else
#include "unpatched.h"
#endif
#include "spdk/string.h"
#include "spdk/thread.h"
#include "spdk/trace.h"
#include "spdk/util.h"
#include "spdk/uuid.h"
#include "spdk/version.h"

#include "spdk_internal/event.h"
#include "spdk_internal/log.h"
#include "spdk_internal/lvolstore.h"
#include "spdk_internal/thread.h"

#include "bdev/aio/bdev_aio.h"
#include "bdev/delay/vbdev_delay.h"
#include "bdev/error/vbdev_error.h"
#include "bdev/lvol/vbdev_lvol.h"
#include "bdev/malloc/bdev_malloc.h"
#include "bdev/null/bdev_null.h"
#include "bdev/nvme/bdev_nvme.h"
#include "bdev/nvme/common.h"
#include "bdev/passthru/vbdev_passthru.h"
#include "bdev/raid/bdev_raid.h"
#include "bdev/split/vbdev_split.h"
#include "bdev/uring/bdev_uring.h"
#include "event/subsystems/nvmf/event_nvmf.h"

#include "bdev_module.h"
#include "bdev_stat.h"
#include "reactor.h"
#include "shim.h"
#include "lvol.h"
