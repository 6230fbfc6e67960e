"""What the parts of ci/bench share: where things are, what is said, hugepages, SPDK's RPCs, pages."""

import glob
import html
import json
import os
import re
import socket
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TARGET = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
MEMORY = 512
SIZE = 4096


def say(text):
    print(f"ci/bench: {text}", file=sys.stderr, flush=True)


def die(text, *more):
    print(f"\nci/bench: {text}", file=sys.stderr)
    for line in more:
        print(f"    {line}", file=sys.stderr)
    sys.exit(1)


class Hugepages:
    """Reserved for the run, and given back."""

    PATH = "/proc/sys/vm/nr_hugepages"

    def __init__(self, megabytes=MEMORY):
        self.needed = megabytes // 2 + 16

    def __enter__(self):
        self.before = int(open(self.PATH).read())
        needed = self.needed
        free = int(re.search(r"HugePages_Free:\s+(\d+)", open("/proc/meminfo").read())[1])
        self.changed = free < needed
        if self.changed:
            try:
                open(self.PATH, "w").write(str(self.before + needed - free))
            except OSError as error:
                die(f"{needed} free hugepages of 2 MiB are needed, there are {free} ({error.strerror}).",
                    f"As root: echo {needed} > {self.PATH}")
        if " hugetlbfs " not in open("/proc/mounts").read():
            os.makedirs("/dev/hugepages", exist_ok=True)
            if subprocess.run(["mount", "-t", "hugetlbfs", "none", "/dev/hugepages"]).returncode != 0:
                die("there is no hugetlbfs mount.", "As root: mount -t hugetlbfs none /dev/hugepages")
        return self

    def __exit__(self, *_):
        if self.changed:
            open(self.PATH, "w").write(str(self.before))


def forget_pages(pid):
    """SPDK's programs leave their hugepages in files, which would be missing for the next one."""
    for path in glob.glob(f"/dev/hugepages/spdk_pid{pid}map_*"):
        os.unlink(path)


class Rpc:
    def __init__(self, path):
        deadline = time.monotonic() + 20
        while True:
            self.socket = socket.socket(socket.AF_UNIX)
            try:
                self.socket.connect(path)
                return
            except OSError:
                self.socket.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def call(self, method, **params):
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        self.socket.sendall(json.dumps(request).encode())
        text = b""
        while True:
            text += self.socket.recv(1 << 20)
            try:
                return json.loads(text)
            except ValueError:
                continue

    def burst(self, count, method, **params):
        """So many calls in one go; their answers."""
        request = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        self.socket.sendall((request * count).encode())
        text, answers, decoder = "", [], json.JSONDecoder()
        while len(answers) < count:
            text += self.socket.recv(1 << 20).decode()
            while text:
                try:
                    answer, end = decoder.raw_decode(text)
                except ValueError:
                    break
                answers.append(answer)
                text = text[end:].lstrip()
        return answers


def table(head, rows):
    cells = lambda values, tag: "<tr>" + "".join(f"<{tag}>{html.escape(str(v))}</{tag}>" for v in values) + "</tr>"
    return "<table>" + cells(head, "th") + "".join(cells(row, "td") for row in rows) + "</table>"


def page(title, body):
    return f"""<!doctype html><meta charset="utf-8"><title>ci/bench</title>
<style>body{{font-family:sans-serif;margin:2em}}td,th{{padding:2px 10px;text-align:right}}</style>
<h1>{title}</h1>
{body}
"""
