/*   SPDX-License-Identifier: BSD-3-Clause
 *   Copyright (c) the spdk-rs authors. All rights reserved.
 */

/* What a reactor knows of its own work. */

#ifndef SPDK_SYS_SHIM_REACTOR_H
#define SPDK_SYS_SHIM_REACTOR_H

/** Grows whenever something on this core had work to do. To be called on that core. */
uint64_t shim_reactor_busy(uint32_t core);

/** When, in ticks, the next timed poller of this core is due: 0 if an event or a message is there now,
 * UINT64_MAX if nothing will ever be due by itself. To be called on that core. */
uint64_t shim_reactor_next_work(uint32_t core);

#endif
