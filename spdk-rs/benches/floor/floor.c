/*   SPDX-License-Identifier: BSD-3-Clause
 *   Copyright (c) the spdk-rs authors. All rights reserved.
 */

/* The floor: the least that a user of SPDK's block devices can do. The completion callback submits
 * the next I/O, at a random place, and nothing else; what this reaches nobody can beat by much.
 * Takes the options of bdevperf that the comparison uses, and prints one line:
 *
 *   floor: <I/O per second> <p50> <p99> <p99.9>     (latencies in ns, 0 without -l)
 */

#include "spdk/stdinc.h"
#include "spdk/bdev.h"
#include "spdk/env.h"
#include "spdk/event.h"
#include "spdk/histogram_data.h"
#include "spdk/string.h"
#include "spdk/thread.h"

static const char *g_name = "Null0";
static uint32_t g_depth = 1;
static uint32_t g_size = 4096;
static uint64_t g_seconds = 3;
/* Of 100 I/Os, this many are reads. */
static uint32_t g_reads = 100;
static bool g_latency;

static struct spdk_bdev_desc *g_desc;
static struct spdk_io_channel *g_channel;
static struct spdk_poller *g_timer;
static struct spdk_histogram_data *g_histogram;
static uint64_t g_blocks_per_io, g_places, g_random = 88172645463325252ULL;
static uint64_t g_done, g_start, g_in_flight;
static bool g_warm, g_stop;
static int g_rc;

struct io {
	void		*buf;
	uint64_t	submitted;
};

static void done(struct spdk_bdev_io *bdev_io, bool success, void *arg);

static uint64_t
next_random(void)
{
	g_random ^= g_random << 13;
	g_random ^= g_random >> 7;
	g_random ^= g_random << 17;
	return g_random;
}

static void
submit(struct io *io)
{
	uint64_t random = next_random();
	/* A division would take as long as the rest of this. */
	uint64_t block = ((random >> 32) * g_places >> 32) * g_blocks_per_io;
	int rc;

	if (g_latency) {
		io->submitted = spdk_get_ticks();
	}
	if (g_reads == 100 || (g_reads > 0 && random % 100 < g_reads)) {
		rc = spdk_bdev_read_blocks(g_desc, g_channel, io->buf, block, g_blocks_per_io, done, io);
	} else {
		rc = spdk_bdev_write_blocks(g_desc, g_channel, io->buf, block, g_blocks_per_io, done, io);
	}
	if (rc != 0) {
		g_rc = rc;
		g_stop = true;
		return;
	}
	g_in_flight++;
}

static void
finish(void)
{
	spdk_put_io_channel(g_channel);
	spdk_bdev_close(g_desc);
	spdk_app_stop(g_rc);
}

static void
done(struct spdk_bdev_io *bdev_io, bool success, void *arg)
{
	struct io *io = arg;

	if (g_latency && g_warm) {
		spdk_histogram_data_tally(g_histogram, spdk_get_ticks() - io->submitted);
	}
	spdk_bdev_free_io(bdev_io);
	g_in_flight--;
	if (!success) {
		g_rc = -EIO;
		g_stop = true;
	}
	if (g_stop) {
		spdk_free(io->buf);
		free(io);
		if (g_in_flight == 0) {
			finish();
		}
		return;
	}
	g_done++;
	submit(io);
}

struct percentiles {
	double		ns[3];
};

static void
find_percentiles(void *ctx, uint64_t start, uint64_t end, uint64_t count, uint64_t total,
		 uint64_t so_far)
{
	static const double parts[] = { 0.5, 0.99, 0.999 };
	struct percentiles *found = ctx;
	size_t i;

	for (i = 0; i < SPDK_COUNTOF(parts); i++) {
		if (found->ns[i] == 0 && so_far >= parts[i] * total) {
			found->ns[i] = end * 1e9 / spdk_get_ticks_hz();
		}
	}
}

/* After a second of warming up, and at the end. */
static int
timer(void *arg)
{
	struct percentiles found = {};
	uint64_t now = spdk_get_ticks();

	if (!g_warm) {
		g_warm = true;
		g_done = 0;
		g_start = now;
		spdk_poller_unregister(&g_timer);
		g_timer = spdk_poller_register(timer, NULL, g_seconds * 1000000);
		return 1;
	}
	if (g_latency) {
		spdk_histogram_data_iterate(g_histogram, find_percentiles, &found);
	}
	printf("floor: %.0f %.0f %.0f %.0f\n",
	       g_done * (double)spdk_get_ticks_hz() / (now - g_start),
	       found.ns[0], found.ns[1], found.ns[2]);
	spdk_poller_unregister(&g_timer);
	g_stop = true;
	return 1;
}

static void
event(enum spdk_bdev_event_type type, struct spdk_bdev *bdev, void *ctx)
{
}

static void
start(void *arg)
{
	struct spdk_bdev *bdev;
	struct io *io;
	uint32_t i;
	int rc;

	rc = spdk_bdev_open_ext(g_name, g_reads < 100, event, NULL, &g_desc);
	if (rc != 0) {
		fprintf(stderr, "floor: cannot open %s: %s\n", g_name, spdk_strerror(-rc));
		spdk_app_stop(rc);
		return;
	}
	bdev = spdk_bdev_desc_get_bdev(g_desc);
	g_channel = spdk_bdev_get_io_channel(g_desc);
	g_blocks_per_io = g_size / spdk_bdev_get_block_size(bdev);
	g_places = spdk_bdev_get_num_blocks(bdev) / g_blocks_per_io;
	g_histogram = spdk_histogram_data_alloc();
	g_timer = spdk_poller_register(timer, NULL, 1000000);
	for (i = 0; i < g_depth; i++) {
		io = calloc(1, sizeof(*io));
		io->buf = spdk_zmalloc(g_size, 4096, NULL, SPDK_ENV_SOCKET_ID_ANY, SPDK_MALLOC_DMA);
		submit(io);
	}
}

static int
option(int ch, char *arg)
{
	switch (ch) {
	case 'b':
		g_name = arg;
		break;
	case 'q':
		g_depth = spdk_strtol(arg, 10);
		break;
	case 'o':
		g_size = spdk_strtol(arg, 10);
		break;
	case 't':
		g_seconds = spdk_strtol(arg, 10);
		break;
	case 'M':
		g_reads = spdk_strtol(arg, 10);
		break;
	case 'l':
		g_latency = true;
		break;
	default:
		return -EINVAL;
	}
	return 0;
}

static void
usage(void)
{
	printf(" -b <bdev> -q <depth> -o <bytes> -t <seconds> -M <percent of reads> -l (latencies)\n");
}

int
main(int argc, char **argv)
{
	struct spdk_app_opts opts = {};
	int rc;

	spdk_app_opts_init(&opts);
	opts.name = "floor";
	rc = spdk_app_parse_args(argc, argv, &opts, "b:q:o:t:M:l", NULL, option, usage);
	if (rc != SPDK_APP_PARSE_ARGS_SUCCESS) {
		return 2;
	}
	rc = spdk_app_start(&opts, start, NULL);
	spdk_app_fini();
	return rc != 0;
}
