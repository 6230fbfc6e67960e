#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""dd, cmp and fio for devices /dev/nbdN that no kernel has: see nbd_kernel.c.

Called by one of these names. It takes the options that SPDK's scripts use, refuses all others, and reads and writes as
the real ones do, to the same status. Where no operand is such a device, it hands over to the real one.
Each use of a device is said on standard error, in a line that begins with "stand-in: ".
"""

import argparse
import os
import re
import socket
import struct
import sys
import time

READ, WRITE = 0, 1
REQUEST, REPLY = struct.Struct(">IIQQI"), struct.Struct(">IIQ")
REQUEST_MAGIC, REPLY_MAGIC = 0x25609513, 0x67446698

# What Linux sends as one request, at most.
LARGEST = 128 << 10
# fio's default block; it has one in flight, here there are more, for speed.
FIO_BLOCK = 4096
IN_FLIGHT = 32


class Failed(Exception):
    """What happened, for a person."""


def is_device(path):
    return re.fullmatch(r"/dev/nbd\d+", path) is not None


class Device:
    """A device while it is lent to this program."""

    def __init__(self, path):
        self.path = path
        address = os.path.join(os.environ["NBD_DIR"], os.path.basename(path))
        try:
            self.owner = socket.socket(socket.AF_UNIX)
            self.owner.connect(address)
            size, fds, _, _ = socket.recv_fds(self.owner, 16, 1)
        except OSError as error:
            raise Failed(f"cannot open {path}: {error.strerror}")
        if not fds:
            raise Failed(f"cannot open {path}: it is being stopped")
        block_size, blocks = struct.unpack("=QQ", size)
        self.size = block_size * blocks
        self.stream = socket.socket(fileno=fds[0])
        self.replies = self.stream.makefile("rb", buffering=LARGEST)
        self.in_step = True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.in_step:
            self.owner.send(b".")
        self.owner.close()

    def read(self, offset, length):
        return b"".join(self._run(READ, self._pieces(offset, length, LARGEST)))

    def write(self, offset, data):
        data = memoryview(data)
        pieces = self._pieces(offset, len(data), LARGEST)
        self._run(WRITE, [(at, n, data[at - offset:at - offset + n]) for at, n in pieces])

    def read_blocks(self, offsets, block):
        return self._run(READ, [(at, block) for at in offsets])

    def write_blocks(self, offsets, data):
        self._run(WRITE, [(at, len(data), data) for at in offsets])

    @staticmethod
    def _pieces(offset, length, largest):
        return [(at, min(largest, offset + length - at)) for at in range(offset, offset + length, largest)]

    def _run(self, kind, requests):
        """All requests, some at a time; after an error, no more than those that were begun."""
        results = []
        for i in range(0, len(requests), IN_FLIGHT):
            results += self._batch(kind, requests[i:i + IN_FLIGHT])
        return results

    def _batch(self, kind, requests):
        self.in_step = False
        out = []
        for handle, (at, length, *data) in enumerate(requests):
            out += [REQUEST.pack(REQUEST_MAGIC, kind, handle, at, length), *data]
        self.stream.sendall(b"".join(out))
        results = [None] * len(requests)
        failed = None
        for _ in requests:
            magic, error, handle = REPLY.unpack(self._receive(REPLY.size))
            if magic != REPLY_MAGIC:
                raise Failed(f"what {self.path} answers is not NBD")
            at, length = requests[handle][:2]
            if error:
                verb = "read" if kind == READ else "write"
                failed = f"{verb} of {length} bytes at {at} of {self.path}: {os.strerror(error)}"
            elif kind == READ:
                results[handle] = self._receive(length)
        self.in_step = True
        if failed:
            raise Failed(failed)
        return results

    def _receive(self, length):
        data = self.replies.read(length)
        if len(data) != length:
            raise Failed(f"{self.path} was stopped during an I/O")
        return data


def note(text):
    print(f"stand-in: {text}", file=sys.stderr, flush=True)


def hand_over(name, args):
    """Becomes the real command: the first of that name on the path that is not this program."""
    me = os.path.realpath(__file__)
    for folder in os.environ["PATH"].split(":"):
        path = os.path.join(folder, name)
        if os.access(path, os.X_OK) and os.path.realpath(path) != me:
            os.execv(path, [name, *args])
    raise Failed("there is no such command but the stand-in")


def dd(args):
    operand = {"bs": "512"}
    for arg in args:
        key, _, value = arg.partition("=")
        operand[key] = value
    source, target = operand.get("if", ""), operand.get("of", "")
    if not is_device(source) and not is_device(target):
        hand_over("dd", args)
    unknown = set(operand) - {"if", "of", "bs", "count", "seek", "skip", "iflag", "oflag"}
    if unknown or (is_device(source) and is_device(target)) or not source or not target:
        raise Failed(f"this is not among what the stand-in can do: {args}")
    block, count = int(operand["bs"]), int(operand["count"])
    seek, skip = (int(operand.get(key, 0)) * block for key in ("seek", "skip"))

    if is_device(target):
        with Device(target) as device, open(source, "rb") as file:
            note(f"dd write {target} {seek}+{count * block}")
            file.seek(skip)
            for at in range(seek, seek + count * block, block):
                data = file.read(block)
                room = max(0, device.size - at)
                device.write(at, data[:room])
                if len(data) > room:
                    raise Failed(f"error writing '{target}': No space left on device")
    else:
        with Device(source) as device, open(target, "wb") as file:
            note(f"dd read {source} {skip}+{count * block}")
            file.seek(seek)
            file.truncate()
            for at in range(skip, min(skip + count * block, device.size), block):
                file.write(device.read(at, min(block, device.size - at)))
    return 0


class Plain:
    """A file, as Device has it."""

    def __init__(self, path):
        self.file = open(path, "rb")
        self.size = os.path.getsize(path)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def read(self, offset, length):
        self.file.seek(offset)
        return self.file.read(length)


def first_difference(a, b):
    return next(i for i, (x, y) in enumerate(zip(a, b)) if x != y)


def cmp(args):
    if not any(map(is_device, args)):
        hand_over("cmp", args)
    if len(args) != 2 or args[0] == args[1]:
        raise Failed(f"this is not among what the stand-in can do: {args}")
    one, other = args
    with (Device if is_device(one) else Plain)(one) as a, (Device if is_device(other) else Plain)(other) as b:
        note(f"cmp {one} {other} 0+{min(a.size, b.size)}")
        size = min(a.size, b.size)
        for at in range(0, size, 4 << 20):
            n = min(4 << 20, size - at)
            x, y = a.read(at, n), b.read(at, n)
            if x != y:
                print(f"{one} {other} differ: byte {at + first_difference(x, y) + 1}")
                return 1
        if a.size != b.size:
            shorter = one if a.size < b.size else other
            print(f"cmp: EOF on {shorter} after byte {size}", file=sys.stderr)
            return 1
    return 0


def fio(args):
    parser = argparse.ArgumentParser(prog="fio", allow_abbrev=False)
    parser.add_argument("--name", required=True)
    parser.add_argument("--filename", required=True)
    parser.add_argument("--offset", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--rw", choices=["read", "write"], required=True)
    parser.add_argument("--direct", choices=["1"])
    parser.add_argument("--time_based", action="store_true")
    parser.add_argument("--runtime", type=float, default=0)
    parser.add_argument("--do_verify", choices=["1"], required=True)
    parser.add_argument("--verify", choices=["pattern"], required=True)
    parser.add_argument("--verify_pattern", type=lambda text: int(text, 16).to_bytes(1, "big"), required=True)
    parser.add_argument("--verify_state_save", choices=["0"])
    job = parser.parse_args(args)
    if not is_device(job.filename):
        raise Failed(f"the stand-in is for /dev/nbdN, not for {job.filename}")

    end_of_job = time.monotonic() + job.runtime if job.time_based else 0
    expected = job.verify_pattern * FIO_BLOCK
    with Device(job.filename) as device:
        # As fio: whole blocks, and no further than the device goes.
        end = min(job.offset + job.size // FIO_BLOCK * FIO_BLOCK, device.size)
        blocks = range(job.offset, end - FIO_BLOCK + 1, FIO_BLOCK)
        note(f"fio {job.rw} {job.filename} {job.offset}+{len(blocks) * FIO_BLOCK} 0x{job.verify_pattern.hex()}"
             + (f" for {job.runtime:g} s" if job.time_based else ""))
        if not blocks:
            raise Failed(f"there is nothing to do: {job.filename} has {device.size} bytes")
        some = [blocks[i:i + IN_FLIGHT] for i in range(0, len(blocks), IN_FLIGHT)]
        while job.rw == "write":
            for offsets in some:
                device.write_blocks(offsets, expected)
            if time.monotonic() >= end_of_job:
                break
        for offsets in some:
            for at, data in zip(offsets, device.read_blocks(offsets, FIO_BLOCK)):
                if data != expected:
                    i = first_difference(data, expected)
                    raise Failed(f"verify: byte {at + i} of {job.filename} is {data[i]:#04x}, not {expected[i]:#04x}")
    return 0


def main():
    name = os.path.basename(sys.argv[0])
    try:
        return {"dd": dd, "cmp": cmp, "fio": fio}[name](sys.argv[1:])
    except (Failed, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2 if name == "cmp" else 1


sys.exit(main())
