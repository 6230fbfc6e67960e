/*   SPDX-License-Identifier: BSD-3-Clause
 *   Copyright (c) the spdk-rs authors. All rights reserved.
 */

#include "wrapper.h"

uint64_t
shim_reactor_busy(uint32_t core)
{
	struct spdk_reactor *reactor = spdk_reactor_get(core);

	return reactor != NULL ? reactor->busy_tsc : 0;
}

uint64_t
shim_reactor_next_work(uint32_t core)
{
	struct spdk_reactor *reactor = spdk_reactor_get(core);
	struct spdk_lw_thread *lw_thread;
	struct spdk_thread *thread;
	uint64_t next = UINT64_MAX, due;

	if (reactor == NULL || spdk_ring_count(reactor->events) > 0) {
		return 0;
	}
	TAILQ_FOREACH(lw_thread, &reactor->threads, link) {
		thread = spdk_thread_get_from_ctx(lw_thread);
		if (spdk_ring_count(thread->messages) > 0) {
			return 0;
		}
		due = spdk_thread_next_poller_expiration(thread);
		if (due != 0 && due < next) {
			next = due;
		}
	}
	return next;
}
