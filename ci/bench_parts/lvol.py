"""ci/bench --lvol: what deletes of logical volumes cost, and whom they disturb."""

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from common import MEMORY, ROOT, TARGET, Hugepages, Rpc, die, forget_pages, page, say, table

NQN = "nqn.2016-06.io.spdk:bench"
# Of the volume's own data beneath the snapshot: its checksum takes long enough for some deletes.
BACKUP_MIB = 512
# In each phase: so many checksums run one after the other, and with each of them so many deletes are refused.
CHECKSUMS, DELETES, BURST = 10, 100, 20
DEPTH = 4


def build():
    run = lambda *args: subprocess.run(args, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    say("building the target and the program of benches/lvol (release)")
    subprocess.run(["ci/setup", "--no-tests"], cwd=ROOT, check=True, stdout=sys.stderr)
    run("cargo", "build", "--locked", "--quiet", "--release", "--bin", "spdk_tgt")
    lines = run("cargo", "build", "--locked", "--quiet", "--release", "--package", "spdk-rs", "--bench", "lvol",
                "--message-format=json").stdout.splitlines()
    made = [message for message in map(json.loads, lines) if message.get("executable")]
    return os.path.join(TARGET, "release", "spdk_tgt"), made[-1]["executable"]


def cores():
    """A core for the target, another one for the host."""
    found = sorted(os.sched_getaffinity(0))
    if len(found) < 2:
        die("two cores are needed: the target and the host poll.")
    return found[0], found[1]


class Ended(Exception):
    pass


class Program:
    """A program of ours, and what it prints."""

    def __init__(self, args, **kw):
        self.args = args
        self.process = subprocess.Popen(args, text=True, **kw)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        forget_pages(self.process.pid)

    def line(self, limit=60):
        timer = threading.Timer(limit, self.process.kill)
        timer.start()
        try:
            text = self.process.stdout.readline()
        finally:
            timer.cancel()
        if not text:
            raise Ended(f"{os.path.basename(self.args[0])} has ended (exit status {self.process.wait()})")
        return text.strip()

    def phase(self):
        """Ends a phase of the host: its latencies."""
        self.process.stdin.write("phase\n")
        self.process.stdin.flush()
        return json.loads(self.line())


def asked(rpc, method, **params):
    answer = rpc.call(method, **params)
    if "error" in answer:
        die(f"{method} failed: {answer['error']}")
    return answer["result"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def set_up(rpc, port):
    mib = BACKUP_MIB
    asked(rpc, "bdev_malloc_create", name="Base", num_blocks=(2 * mib + 128) << 8, block_size=4096)
    asked(rpc, "bdev_lvol_create_lvstore", bdev_name="Base", lvs_name="lvs", cluster_sz=1 << 20)
    # Thick: all of its clusters are what the checksum reads.
    asked(rpc, "bdev_lvol_create", lvs_name="lvs", lvol_name="vol", size=mib << 20)
    asked(rpc, "bdev_lvol_snapshot", lvol_name="lvs/vol", snapshot_name="backup")
    asked(rpc, "nvmf_create_transport", trtype="TCP")
    asked(rpc, "nvmf_create_subsystem", nqn=NQN, allow_any_host=True)
    for name in ("vol", "backup"):
        asked(rpc, "nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": f"lvs/{name}"})
    address = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": str(port)}
    asked(rpc, "nvmf_subsystem_add_listener", nqn=NQN, listen_address=address)


def connections(rpc):
    groups = asked(rpc, "nvmf_get_stats")["poll_groups"]
    return [sum(group[key] for group in groups) for key in ("admin_qpairs", "io_qpairs")]


def namespaces(rpc):
    found = [subsystem for subsystem in asked(rpc, "nvmf_get_subsystems") if subsystem["nqn"] == NQN]
    return [(space["nsid"], space["bdev_name"]) for space in found[0]["namespaces"]]


def calls(rpc, path, deletes, times):
    """Checksums of the backup, one after the other; with each, so many calls. Each is a delete that has to be refused, or,
    for comparison, one of the same length that asks for nothing that is there."""
    for _ in range(CHECKSUMS):
        done = {}
        other = Rpc(path)
        summer = threading.Thread(target=lambda: done.update(
            other.call("bdev_lvol_register_snapshot_checksum", name="lvs/backup")))
        summer.start()
        # Until it has the lock. It goes on for far longer.
        time.sleep(0.03)
        # In bursts: the target looks for calls every four milliseconds only.
        for _ in range(DELETES // BURST):
            name = "lvs/backup" if deletes else "lvs/nobody"
            wanted = "Device or resource busy" if deletes else "No such device"
            begin = time.perf_counter_ns()
            answers = rpc.burst(BURST, "bdev_lvol_delete", name=name)
            times.append((time.perf_counter_ns() - begin) / 1e3)
            for answer in answers:
                if answer.get("error", {}).get("message") != wanted:
                    die(f"a delete was answered {answer}, and not with: {wanted}",
                        "If it was granted, the checksum had ended before: the machine is too busy for this.")
        summer.join()
        other.socket.close()
        if done.get("result") is not True:
            die(f"a checksum failed: {done}")


def refused(target, program, options, place):
    """Phases without and with refused deletes, A B A B …."""
    core, other = cores()
    huge = ["--no-huge"] if options.no_huge else []
    path, port = os.path.join(place, "rpc.sock"), free_port()
    memory = 2 * BACKUP_MIB + 768
    pairs = options.pairs or (2 if options.quick else 5)
    log = open(os.path.join(place, "target.log"), "w")
    rows = []
    with Program([target, *huge, "-m", f"[{core}]", "-s", str(memory), "-r", path], stdout=log, stderr=log):
        rpc = Rpc(path)
        set_up(rpc, port)
        host = [program, "host", *huge, "-s", str(MEMORY), "-m", f"[{other}]", f"127.0.0.1:{port}", NQN, str(DEPTH)]
        with Program(host, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as host:
            host.line()
            before = (connections(rpc), namespaces(rpc), asked(rpc, "bdev_get_bdevs", name="lvs/backup"))
            host.phase()
            for pair in range(pairs):
                row = {"bench": "lvol", "what": "host during refused deletes", "pair": pair}
                for name, deletes in (("without", False), ("with", True)):
                    times = []
                    host.phase()
                    calls(rpc, path, deletes, times)
                    found = host.phase()
                    row |= {f"{name}_{key}": value for key, value in found.items()}
                    row[f"{name}_burst_us"] = round(statistics.median(times), 1)
                    row[f"{name}_calls"] = len(times) * BURST
                row["p99_ratio"] = round(row["with_p99_us"] / row["without_p99_us"], 3)
                row["p50_ratio"] = round(row["with_p50_us"] / row["without_p50_us"], 3)
                rows.append(row)
                print(json.dumps(row), flush=True)
                say(f"host at QD {DEPTH}: p99 {row['without_p99_us']:.0f} µs, with {row['with_calls']} refused deletes "
                    f"{row['with_p99_us']:.0f} µs ({row['p99_ratio']:.2f}); {row['with_count']} I/Os verified")
            after = (connections(rpc), namespaces(rpc), asked(rpc, "bdev_get_bdevs", name="lvs/backup"))
            if before != after:
                die("the refused deletes left traces:", f"before: {before}", f"after: {after}")
            host.process.stdin.close()
            if host.process.wait(timeout=60) != 0:
                die("the host failed.")
    return rows


def local(program, options):
    huge = ["--no-huge"] if options.no_huge else []
    args = [program, "local", *huge, "-s", str(1024 if options.quick else 2048), "-m", f"[{cores()[0]}]"]
    args += ["--quick"] if options.quick else []
    rows = []
    with Program(args, stdout=subprocess.PIPE) as process:
        for line in process.process.stdout:
            if not line.startswith("{"):
                continue
            rows.append(json.loads(line))
            print(line.strip(), flush=True)
        process.process.wait()
    if process.process.returncode != 0:
        die(f"this failed (exit status {process.process.returncode}): {' '.join(args)}")
    return rows


# What is done with each of many volumes, in the order of benches/lvol/scale.
SCALE = ("create", "create and delete one more", "list", "look up", "open", "load", "delete")


def scale(rows, key, unit):
    """What each of many volumes costs, to each of the fewest."""
    result = []
    for what in SCALE:
        few, *more = [row for row in rows if row["what"] == what]
        for row in more:
            ratio = row[key] / few[key]
            result.append((f"{what}, each of {row['n']} to each of {few['n']}", f"{row[key]:.2f} {unit}, {ratio:.2f}",
                           "≤ 1.5", ratio <= 1.5))
    return result


def instructions(program, options, place):
    """The same in instructions, which do not depend on what else the machine does. They are counted by valgrind between one
    result and the next; what the program does before the first volume is left out with the help of a run with one volume."""
    if not shutil.which("valgrind"):
        die("valgrind is needed to count instructions: apt-get install valgrind")
    counts = {}
    for n in (1, 100, 1000) + (() if options.quick else (10000,)):
        say(f"counting with {n} volumes")
        out = os.path.join(place, f"counts-{n}")
        subprocess.run(["valgrind", "--tool=callgrind", "--dump-before=lvol::local::print*", f"--callgrind-out-file={out}", program,
                        "scale", str(n), "--no-huge", "-s", "2048", "-m", f"[{cores()[0]}]"], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        totals = []
        for at in range(1, len(SCALE) + 1):
            with open(f"{out}.{at}") as file:
                totals += [int(line.split()[1]) for line in file if line.startswith("totals:")]
        counts[n] = dict(zip(SCALE, totals, strict=True))
    rows = []
    for n in list(counts)[1:]:
        for what, total in counts[n].items():
            # One more is made and deleted fifty times, however many there are.
            each = total / 50 if "more" in what else (total - counts[1][what]) / (n - 1)
            rows.append({"bench": "lvol", "what": what, "n": str(n), "each_kinst": round(each / 1e3, 3)})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def summary(rows, others):
    """Name, value, goal, and whether it is met."""
    middle = lambda key, found: statistics.median(row[key] for row in found)
    of = lambda what: [row for row in others if row["what"] == what]
    result = [("p99 of the host with refused deletes, to that without", f"{middle('p99_ratio', rows):.2f}", "", "")]
    p50 = of("refused delete")[0]["p50_us"]
    result.append(("refused delete, in the process, median", f"{p50:.1f} µs", "< 100 µs", p50 < 100))
    result.append(("snapshot and granted delete, median", f"{of('snapshot and granted delete')[0]['p50_us']:.0f} µs", "", ""))
    result += scale(others, "each_us", "µs")
    ratio, speed = middle("ratio", of("checksum")), middle("checksum_gb_s", of("checksum"))
    result.append(("checksum, to reading in order", f"{speed:.2f} GB/s, {ratio:.2f}", "≥ 0.90", ratio >= 0.9))
    result.append(("random read of an lvol, to the device beneath", f"{middle('ratio', of('random read over raw')):.2f}", "", ""))
    return result


def run(options):
    target, program = build()
    if options.instructions:
        with tempfile.TemporaryDirectory() as place:
            found = scale(instructions(program, options, place), "each_kinst", "thousand instructions")
        for name, value, goal, met in found:
            say(f"{name}: {value} (goal {goal}: {'met' if met else 'MISSED'})")
        missed = [name for name, _, _, met in found if not met]
        say(f"done; goals missed: {', '.join(missed) if missed else 'none'}")
        return
    with tempfile.TemporaryDirectory() as place:
        if options.no_huge:
            others = local(program, options)
            rows = refused(target, program, options, place)
        else:
            with Hugepages(3072):
                others = local(program, options)
                rows = refused(target, program, options, place)
    found = summary(rows, others)
    for name, value, goal, met in found:
        say(f"{name}: {value}" + (f" (goal {goal}: {'met' if met else 'MISSED'})" if goal else ""))
    out = os.path.join(TARGET, "bench", "lvol.html")
    os.makedirs(os.path.dirname(out), exist_ok=True)
    told = [[name, value, goal, {True: "yes", False: "no"}.get(met, "")] for name, value, goal, met in found]
    keys = list(rows[0])[2:]
    everything = "".join(
        f"<h2>{what}</h2>" + table([key for key in group[0] if key not in ("bench", "what")],
                                   [[row[key] for key in row if key not in ("bench", "what")] for row in group])
        for what in dict.fromkeys(row["what"] for row in others)
        for group in [[row for row in others if row["what"] == what]])
    body = (f"<p>ci/bench {' '.join(sys.argv[1:])}</p>" + table(["", "measured", "goal", "met"], told)
            + f"<h2>The host, without and with refused deletes; QD {DEPTH}, 4 KiB, half reads</h2>"
            + table(keys, [[row[key] for key in keys] for row in rows]) + everything)
    with open(out, "w") as file:
        file.write(page("Logical volumes: deletes, many volumes, checksums", body))
    say(f"the page: {out}")
    missed = [name for name, _, goal, met in found if goal and not met]
    say(f"done; goals missed: {', '.join(missed) if missed else 'none'}")
