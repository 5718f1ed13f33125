#!/usr/bin/python3
"""Makes a table or JSON of what script/bench measured: `bench_table.py [--json] DIR`.

DIR/results holds files `CELL SYSTEM REPEAT` of fio's JSON with `.ticks` beside them; the best repeat of each counts,
since noise only ever makes things slower. Loads under repair are compared with the run right before each: the median of these pairs counts.
"""
import json
import os
import pathlib
import statistics
import sys

# The floor of each cell, its share that one VDI can have of it, and which part of the floor is the target. Three copies
# share one disk, so a third of what the disk does with durable writes is what could be reached.
TARGETS = {
    "write4k-1": ("disk", 1 / 3, 0.60),
    "write4k-32": ("disk", 1 / 3, 0.60),
    "read4k-1": ("qemu-nbd", 1, 0.80),
    "read4k-32": ("qemu-nbd", 1, 0.70),
    "write1m-8": ("disk", 1 / 3, 0.85),
    "read1m-8": ("qemu-nbd", 1, 0.80),
    "fresh4k-32": ("rewrite", 1, 0.70),
    "fresh1m-8": ("rewrite", 1, 0.70),
    "after-snapshot": ("before", 1, 0.80),
    # Three copies take three times the memory and the journals of one.
    "writeback4k-32": ("qemu-nbd", 1 / 3, 0.60),
    "boot-storm": ("qemu-nbd", 1, None),
    "threads-read4k-32": ("one-thread", 1, None),
    "threads-write4k-32": ("one-thread", 1, None),
}
# CPU time of all sheep together for a request, in microseconds.
CPU_US_MAX = {"write4k-32": 60, "read4k-32": 15}
# Bytes that a copy writes to its disk, for a byte of the client.
AMPLIFICATION_MAX = {"4k": 2.2, "64k": 1.1}
# Of a load, what it keeps of its rate while repair goes on, and how many times longer it may take.
REPAIR_TARGETS = {"repair-write4k-1": 0.66, "repair-write4k-32": 0.66, "repair-write1m-8": 0.66}
REPAIR_P99_TARGETS = {"repair-write4k-1": 2, "repair-write4k-32": 2}
# Of the slower of disk and network, what repair alone reaches.
REPAIR_ALONE_TARGET = 0.80
SNAPSHOT_MS_MAX = 100
# Beside the memory for blocks of snapshots; what 10 GiB more of stored data may add does not show here.
PEAK_MIB_MAX = 128
SYSTEMS = ["sheep", "disk", "qemu-nbd", "rewrite", "before", "one-thread", "quiet"]


def read_run(path, side=None):
    # fio may write notes before the JSON.
    text = path.read_text()
    job = json.loads(text[text.index("{"):])["jobs"][0]
    side = job[side] if side else max(job["write"], job["read"], key=lambda side: side["total_ios"])
    ticks = int(path.with_name(path.name + ".ticks").read_text())
    spent = ticks * 1e6 / os.sysconf("SC_CLK_TCK")
    if " disk " in path.name:
        # There is no server: what fio needs itself, whose percentages are of its run time.
        spent = (job["usr_cpu"] + job["sys_cpu"]) / 100 * side["runtime"] * 1000
    return {
        "iops": round(side["iops"], 1),
        "mb_per_s": round(side["bw_bytes"] / 1e6, 1),
        "p50_us": round(side["clat_ns"]["percentile"]["50.000000"] / 1000, 1),
        "p99_us": round(side["clat_ns"]["percentile"]["99.000000"] / 1000, 1),
        "server_cpu_us_per_request": round(spent / max(1, side["total_ios"]), 1),
    }


def under_repair(directory, cell):
    """The pair of runs whose rates are in the median proportion, and both medians."""
    results = directory / "results"
    pairs = [(read_run(path), read_run(results / path.name.replace(" quiet ", " sheep "))) for path in sorted(results.glob(f"{cell} quiet *"))
             if path.suffix != ".ticks"]
    if not pairs:
        return None
    pairs.sort(key=lambda pair: pair[1]["iops"] / pair[0]["iops"])
    quiet, sheep = pairs[len(pairs) // 2]
    target, p99_target = REPAIR_TARGETS[cell], REPAIR_P99_TARGETS.get(cell)
    ratio = sheep["iops"] / quiet["iops"]
    p99_ratio = statistics.median(busy["p99_us"] / calm["p99_us"] for calm, busy in pairs)
    sheep.update(floor="quiet", floor_share=1, ratio=round(ratio, 3), target=target, p99_ratio=round(p99_ratio, 2), p99_target=p99_target,
                 ratios=[round(busy["iops"] / calm["iops"], 3) for calm, busy in pairs],
                 p99_ratios=[round(busy["p99_us"] / calm["p99_us"], 2) for calm, busy in pairs],
                 meets_target=ratio >= target and (p99_target is None or p99_ratio <= p99_target))
    return {"quiet": quiet, "sheep": sheep}


def repair_alone(directory):
    """By what was done to the fourth sheep: how fast the copies came to where they belong."""
    found = {}
    for path in sorted(directory.glob("repairs.*")):
        network = float((directory / "network").read_text()) / 1e6
        runs = []
        for line in path.read_text().splitlines():
            size, took, number = map(int, line.split())
            disk = read_run(directory / "results" / f"repair-alone disk {number}", "write")["mb_per_s"]
            floors = {"disk": disk, "network": round(network, 1)}
            floor = min(floors, key=floors.get)
            rate = size / took / 1000
            runs.append({"bytes": size, "ms": took, "mb_per_s": round(rate, 1), "floors_mb_per_s": floors, "floor": floor,
                         "ratio": round(rate / floors[floor], 3)})
        runs.sort(key=lambda run: run["ratio"])
        ratios = [run["ratio"] for run in runs]
        found[path.name.removeprefix("repairs.")] = runs[(len(runs) - 1) // 2] | {
            "ratios": ratios, "target": REPAIR_ALONE_TARGET, "meets_target": ratios[(len(runs) - 1) // 2] >= REPAIR_ALONE_TARGET}
    return found


def main():
    as_json = "--json" in sys.argv
    directory = pathlib.Path(sys.argv[-1])
    cells = {}
    for path in sorted((directory / "results").glob("* *")):
        if path.suffix == ".ticks":
            continue
        cell, system, _ = path.name.split()
        if cell.startswith("repair-"):
            continue
        run = read_run(path)
        best = cells.setdefault(cell, {}).get(system)
        if best is None or run["iops"] > best["iops"]:
            cells[cell][system] = run
    for cell, systems in cells.items():
        floor, share, target = TARGETS[cell]
        ratio = systems["sheep"]["iops"] / (systems[floor]["iops"] * share)
        systems["sheep"].update(floor=floor, floor_share=round(share, 3), ratio=round(ratio, 3), target=target,
                                meets_target=target is None or ratio >= target)
        if cell in CPU_US_MAX:
            spent = systems["sheep"]["server_cpu_us_per_request"]
            systems["sheep"].update(cpu_us_target=CPU_US_MAX[cell], meets_cpu_target=spent <= CPU_US_MAX[cell])
    cells.update({cell: pair for cell in REPAIR_TARGETS if (pair := under_repair(directory, cell))})
    repairs = repair_alone(directory)
    lines = [line.split() for line in (directory / "memory").read_text().splitlines()]
    resident = [round(int(kib) / 1024) for key, kib in lines if key == "VmRSS:"]
    peak = [round(int(kib) / 1024) for key, kib in lines if key == "VmHWM:"]
    cache = [round(int(kib) / 1024) for key, kib in lines if key == "cache:"]
    memory = {"resident_mib": resident, "peak_mib": peak, "cache_mib": cache, "target_mib": PEAK_MIB_MAX,
              "meets_target": max(p - c for p, c in zip(peak, cache)) <= PEAK_MIB_MAX}
    # The first word of a file's name is the size, the second what was done to it.
    snapshots = {}
    for path in sorted(directory.glob("snapshots.* *")):
        size, deed = path.name.removeprefix("snapshots.").split()
        best = min(int(line) for line in path.read_text().split())
        snapshots[f"{deed} of {size}"] = {"ms": best, "target_ms": SNAPSHOT_MS_MAX, "meets_target": best < SNAPSHOT_MS_MAX}
    amplification = {}
    for size, target in AMPLIFICATION_MAX.items():
        path = directory / f"amplification.{size}"
        if path.exists():
            found = int(path.read_text()) / 1000
            amplification[size] = {"written_per_byte": found, "target": target, "meets_target": found <= target}
    guests = read_guests(directory)
    if as_json:
        print(json.dumps({"cells": cells, "amplification": amplification, "snapshots": snapshots, "repairs": repairs, "guests": guests, "memory": memory}, indent=2))
    else:
        print_table(cells, amplification, snapshots, repairs, guests, memory)


def read_guests(directory):
    """Operations per second in a guest, by transport and kind."""
    guests = {}
    for transport in ["vhost-user", "nbd"]:
        path = directory / f"vhost.{transport}"
        for line in path.read_text().splitlines() if path.exists() else []:
            kind, rate = line.split()
            rates = guests.setdefault(transport, {})
            rates[kind] = max(rates.get(kind, 0), int(rate))
    return guests


def print_table(cells, amplification, snapshots, repairs, guests, memory):
    print(f"{'cell':<17} {'system':<9} {'rate':>12} {'p50 us':>9} {'p99 us':>9} {'CPU us/req':>10}  of its floor")
    for cell in [*TARGETS, *REPAIR_TARGETS]:
        for system in [s for s in SYSTEMS if s in cells.get(cell, {})]:
            run = cells[cell][system]
            rate = f"{run['mb_per_s']:.0f} MB/s" if "1m" in cell or "storm" in cell else f"{run['iops']:.0f} IOPS"
            cpu = f"{run['server_cpu_us_per_request']:.1f}"
            line = f"{cell:<17} {system:<9} {rate:>12} {run['p50_us']:>9.0f} {run['p99_us']:>9.0f} {cpu:>10}"
            if system == "sheep":
                third = "a third of " if run["floor_share"] < 1 else ""
                line += f"  {run['ratio']:.0%} of {third}{run['floor']}"
                if run["target"] is not None:
                    line += f", target {run['target']:.0%}"
                if run.get("p99_target") is not None:
                    line += f", p99 {run['p99_ratio']} times, target {run['p99_target']}"
                line += "" if run["meets_target"] else ": MISSED"
                if "cpu_us_target" in run:
                    line += f"; CPU target {run['cpu_us_target']} us" + ("" if run["meets_cpu_target"] else ": MISSED")
            print(line)
    for size, run in amplification.items():
        print(f"{size} writes at random: a copy writes {run['written_per_byte']:.2f} bytes to its disk for each, target {run['target']}"
              + ("" if run["meets_target"] else ": MISSED"))
    for deed, took in snapshots.items():
        print(f"{deed}: {took['ms']} ms, with the command itself, target below {took['target_ms']} ms"
              + ("" if took["meets_target"] else ": MISSED"))
    for deed, run in repairs.items():
        print(f"repair alone, a fourth sheep {deed}: {run['bytes'] / 1e6:.0f} MB in {run['ms'] / 1000:.1f} s, {run['mb_per_s']:.0f} MB/s, "
              f"{run['ratio']:.0%} of {run['floor']} ({run['floors_mb_per_s'][run['floor']]:.0f} MB/s), target {run['target']:.0%}"
              + ("" if run["meets_target"] else ": MISSED") + (f"; of {len(run['ratios'])}: {', '.join(f'{ratio:.0%}' for ratio in run['ratios'])}" if len(run["ratios"]) > 1 else ""))
    for kind in ["write", "read"] if guests else []:
        vhost, nbd = guests["vhost-user"][kind], guests["nbd"][kind]
        print(f"in an emulated guest, 4 KiB {kind}s at random: {vhost} IOPS over vhost-user, {nbd} over NBD ({vhost / nbd:.0%})")
    print(f"memory of the sheep: resident {memory['resident_mib']} MiB, at their peak {memory['peak_mib']} MiB, of which blocks of snapshots "
          f"{memory['cache_mib']} MiB, target {memory['target_mib']} MiB beside those" + ("" if memory["meets_target"] else ": MISSED"))
    print("disk: fio on a file, O_DIRECT, writes O_DSYNC (write4k-1: three jobs); qemu-nbd: the file with O_DIRECT, "
          "writes O_DSYNC (writeback4k-32: in the page cache, flushed at the end); rewrite: the same writes once more; before: the same load before the snapshot; quiet: the same load "
          "before repair; repair alone: of the disk written durably while as much is read, just before each, and of the loopback network, the median; one-thread: clients on the data plane's thread, with --io-threads 1 instead of 2; CPU: of the server, all sheep together; of the disk: of fio itself")


main()
