/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * The kernel's part of NBD, for a kernel that has none: preloaded into a target, it answers for /dev/nbdN.
 *
 * The target does all of its own part: nbd_start_disk, nbd_stop_disk, and its end of the socket pair, over which reads
 * and writes come to the block device. Here is what the kernel does with the other end, but for one thing: who reads and
 * writes /dev/nbdN is no system call, but a program (nbd_tools.py) that connects to the socket NBD_DIR/nbdN and is lent
 * that end. One has it at a time, and says when it is done; the next one waits.
 *
 * All that does not concern /dev/nbdN is passed on.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/nbd.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <arpa/inet.h>

#define DEVICES 16

struct device {
	bool		used;		/* the target has it open as `fd` */
	int		fd;
	int		sock;		/* the kernel's end, -1 without one */
	uint32_t	block_size;
	uint64_t	blocks;
	bool		serving;	/* a thread is in NBD_DO_IT */
	bool		leaving;	/* and shall leave it */
	int		wake;		/* readable when it shall */
};

/* What a program is told that is lent the socket. */
struct size {
	uint64_t	block_size;
	uint64_t	blocks;
};

static struct device g_devices[DEVICES];
static pthread_mutex_t g_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t g_left = PTHREAD_COND_INITIALIZER;

static int
fail(int error)
{
	errno = error;
	return -1;
}

static int
number(const struct device *device)
{
	return device - g_devices;
}

static struct sockaddr_un
address(const struct device *device, const char *tail)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	const char *dir = getenv("NBD_DIR");

	snprintf(un.sun_path, sizeof(un.sun_path), "%s/nbd%d%s", dir ? dir : ".", number(device), tail);
	return un;
}

/* It has its name when it can be connected to, not before. */
static int
listen_at(const struct device *device)
{
	struct sockaddr_un early = address(device, ".new"), un = address(device, "");
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	unlink(early.sun_path);
	if (listener < 0 || bind(listener, (void *)&early, sizeof(early)) || listen(listener, 4) ||
	    rename(early.sun_path, un.sun_path)) {
		fprintf(stderr, "stand-in: cannot make the socket %s: %s\n", un.sun_path, strerror(errno));
		close(listener);
		return -1;
	}
	return listener;
}

static int
open_device(unsigned n)
{
	struct device *device = &g_devices[n];
	int fd = -1;

	pthread_mutex_lock(&g_lock);
	if (device->serving) {
		errno = EBUSY;
	} else if ((fd = eventfd(0, EFD_CLOEXEC)) >= 0) {
		*device = (struct device) { .used = true, .fd = fd, .sock = -1, .wake = -1 };
	}
	pthread_mutex_unlock(&g_lock);
	return fd;
}

static int
set_sock(struct device *device, int sock)
{
	if (device->sock >= 0) {
		return fail(EBUSY);
	}
	device->sock = fcntl(sock, F_DUPFD_CLOEXEC, 0);
	device->wake = eventfd(0, EFD_CLOEXEC);
	device->leaving = false;
	return device->sock < 0 || device->wake < 0 ? -1 : 0;
}

/* Lends the socket until the borrower is done. False: it left in the midst of something, the stream is of no use now. */
static bool
lend(struct device *device, int borrower)
{
	struct size size = { .block_size = device->block_size, .blocks = device->blocks };
	struct iovec iov = { .iov_base = &size, .iov_len = sizeof(size) };
	union {
		struct cmsghdr	align;
		char		space[CMSG_SPACE(sizeof(int))];
	} control = {};
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.space,
		.msg_controllen = sizeof(control.space) };
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);
	char done;

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cmsg), &device->sock, sizeof(int));
	return sendmsg(borrower, &msg, MSG_NOSIGNAL) == sizeof(size) && read(borrower, &done, 1) == 1;
}

static void
serve(struct device *device, int listener)
{
	struct pollfd fds[] = {
		{ .fd = listener, .events = POLLIN },
		{ .fd = device->wake, .events = POLLIN },
	};
	bool intact = true;

	while (intact && poll(fds, 2, -1) > 0 && !fds[1].revents) {
		int borrower = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

		if (borrower >= 0) {
			intact = lend(device, borrower);
			close(borrower);
		}
	}
	if (!intact) {
		fprintf(stderr, "stand-in: lost /dev/nbd%d: a program left it in the midst of an I/O\n", number(device));
		shutdown(device->sock, SHUT_RDWR);
	}
}

/* NBD_DO_IT: from here on there is a device to read and write. Comes back when it is no more. */
static int
do_it(struct device *device)
{
	int listener;

	pthread_mutex_lock(&g_lock);
	/* It may have been stopped before this thread came here. */
	device->serving = device->sock >= 0 && !device->leaving;
	pthread_mutex_unlock(&g_lock);
	if (!device->serving) {
		return 0;
	}
	fprintf(stderr, "stand-in: start /dev/nbd%d, %" PRIu64 " bytes\n", number(device),
		device->blocks * device->block_size);
	listener = listen_at(device);
	if (listener >= 0) {
		serve(device, listener);
		close(listener);
	}
	pthread_mutex_lock(&g_lock);
	device->serving = false;
	pthread_cond_broadcast(&g_left);
	pthread_mutex_unlock(&g_lock);
	return listener < 0 ? -1 : 0;
}

static void
leave(struct device *device)
{
	if (!device->leaving && device->wake >= 0) {
		device->leaving = true;
		eventfd_write(device->wake, 1);
	}
}

/* Whoever reads or writes comes to an end first; then the target is told, in the stream. */
static int
disconnect(struct device *device)
{
	struct nbd_request request = { .magic = htonl(NBD_REQUEST_MAGIC), .type = htonl(NBD_CMD_DISC) };

	fprintf(stderr, "stand-in: stop /dev/nbd%d\n", number(device));
	leave(device);
	while (device->serving) {
		pthread_cond_wait(&g_left, &g_lock);
	}
	return write(device->sock, &request, sizeof(request)) == sizeof(request) ? 0 : -1;
}

/* The target has let the block device go. */
static int
clear_sock(struct device *device)
{
	struct sockaddr_un un = address(device, "");

	leave(device);
	shutdown(device->sock, SHUT_RDWR);
	while (device->serving) {
		pthread_cond_wait(&g_left, &g_lock);
	}
	unlink(un.sun_path);
	close(device->sock);
	close(device->wake);
	*device = (struct device) { .sock = -1, .wake = -1 };
	return 0;
}

static int
control(struct device *device, unsigned long request, unsigned long arg)
{
	switch (request) {
	case NBD_SET_SOCK:
		return set_sock(device, arg);
	case NBD_SET_BLKSIZE:
		device->block_size = arg;
		return 0;
	case NBD_SET_SIZE_BLOCKS:
		device->blocks = arg;
		return 0;
	case NBD_SET_FLAGS:
	case NBD_CLEAR_QUE:
		return 0;
	case NBD_DISCONNECT:
		return disconnect(device);
	case NBD_CLEAR_SOCK:
		return clear_sock(device);
	default:
		return fail(ENOTTY);
	}
}

static void *
next(const char *name)
{
	void *function = dlsym(RTLD_NEXT, name);

	if (function == NULL) {
		fprintf(stderr, "stand-in: the C library has no %s\n", name);
		abort();
	}
	return function;
}

static int
open_any(const char *real, const char *path, int flags, va_list args)
{
	int (*pass)(const char *, int, ...) = next(real);
	unsigned n;
	char tail;

	if (sscanf(path, "/dev/nbd%u%c", &n, &tail) == 1 && n < DEVICES) {
		return open_device(n);
	}
	if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) {
		return pass(path, flags, va_arg(args, mode_t));
	}
	return pass(path, flags);
}

int
open(const char *path, int flags, ...)
{
	va_list args;
	int rc;

	va_start(args, flags);
	rc = open_any("open", path, flags, args);
	va_end(args);
	return rc;
}

int
open64(const char *path, int flags, ...)
{
	va_list args;
	int rc;

	va_start(args, flags);
	rc = open_any("open64", path, flags, args);
	va_end(args);
	return rc;
}

int
ioctl(int fd, unsigned long request, ...)
{
	int (*pass)(int, unsigned long, ...) = next("ioctl");
	struct device *device = NULL;
	unsigned long arg;
	va_list args;
	int rc;

	va_start(args, request);
	arg = va_arg(args, unsigned long);
	va_end(args);
	/* Only NBD's have this type: a number that has come to another file since is left alone. */
	if (_IOC_TYPE(request) != _IOC_TYPE(NBD_DO_IT)) {
		return pass(fd, request, arg);
	}
	pthread_mutex_lock(&g_lock);
	for (int i = 0; i < DEVICES; i++) {
		if (g_devices[i].used && g_devices[i].fd == fd) {
			device = &g_devices[i];
		}
	}
	if (device != NULL && request != NBD_DO_IT) {
		rc = control(device, request, arg);
	}
	pthread_mutex_unlock(&g_lock);
	if (device == NULL) {
		return pass(fd, request, arg);
	}
	return request == NBD_DO_IT ? do_it(device) : rc;
}
