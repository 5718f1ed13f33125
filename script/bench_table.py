#!/usr/bin/python3
"""Makes a table or JSON of what script/bench measured: `bench_table.py [--json] DIR`.

DIR/results holds files `CELL SYSTEM REPEAT` of fio's JSON with `.ticks` beside them; the best repeat of each counts,
since noise only ever makes things slower.
"""
import json
import os
import pathlib
import sys

# The floor of each cell, its share that one VDI can have of it, and which part of the floor is the target. Three copies
# share one disk, so a third of what the disk does with small durable writes is what could be reached.
TARGETS = {
    "write4k-1": ("disk", 1 / 3, 0.40),
    "write4k-32": ("disk", 1 / 3, 0.30),
    "read4k-1": ("qemu-nbd", 1, None),
    "read4k-32": ("qemu-nbd", 1, 0.50),
    "write1m-8": ("disk", 1, 0.25),
    "read1m-8": ("qemu-nbd", 1, None),
    "after-snapshot": ("before", 1, 0.80),
    "boot-storm": ("qemu-nbd", 1, None),
}
SNAPSHOT_MS_MAX = 100
RESIDENT_MIB_MAX = 256
SYSTEMS = ["sheep", "disk", "qemu-nbd", "before"]


def read_run(path):
    # fio may write notes before the JSON.
    text = path.read_text()
    job = json.loads(text[text.index("{"):])["jobs"][0]
    side = max(job["write"], job["read"], key=lambda side: side["total_ios"])
    ticks = int(path.with_name(path.name + ".ticks").read_text())
    return {
        "iops": round(side["iops"], 1),
        "mb_per_s": round(side["bw_bytes"] / 1e6, 1),
        "p50_us": round(side["clat_ns"]["percentile"]["50.000000"] / 1000, 1),
        "p99_us": round(side["clat_ns"]["percentile"]["99.000000"] / 1000, 1),
        "server_cpu_us_per_request": round(ticks * 1e6 / os.sysconf("SC_CLK_TCK") / max(1, side["total_ios"]), 1),
    }


def main():
    as_json = "--json" in sys.argv
    directory = pathlib.Path(sys.argv[-1])
    cells = {}
    for path in sorted((directory / "results").glob("* *")):
        if path.suffix == ".ticks":
            continue
        cell, system, _ = path.name.split()
        run = read_run(path)
        best = cells.setdefault(cell, {}).get(system)
        if best is None or run["iops"] > best["iops"]:
            cells[cell][system] = run
    for cell, systems in cells.items():
        floor, share, target = TARGETS[cell]
        ratio = systems["sheep"]["iops"] / (systems[floor]["iops"] * share)
        systems["sheep"].update(floor=floor, floor_share=round(share, 3), ratio=round(ratio, 3), target=target,
                                meets_target=target is None or ratio >= target)
    lines = [line.split() for line in (directory / "memory").read_text().splitlines()]
    resident = [round(int(kib) / 1024) for key, kib in lines if key == "VmRSS:"]
    peak = [round(int(kib) / 1024) for key, kib in lines if key == "VmHWM:"]
    memory = {"resident_mib": resident, "peak_mib": peak, "target_mib": RESIDENT_MIB_MAX,
              "meets_target": max(resident) < RESIDENT_MIB_MAX}
    # The first word of a file's name is the size, the second what was done to it.
    snapshots = {}
    for path in sorted(directory.glob("snapshots.* *")):
        size, deed = path.name.removeprefix("snapshots.").split()
        best = min(int(line) for line in path.read_text().split())
        snapshots[f"{deed} of {size}"] = {"ms": best, "target_ms": SNAPSHOT_MS_MAX, "meets_target": best < SNAPSHOT_MS_MAX}
    if as_json:
        print(json.dumps({"cells": cells, "snapshots": snapshots, "memory": memory}, indent=2))
    else:
        print_table(cells, snapshots, memory)


def print_table(cells, snapshots, memory):
    print(f"{'cell':<14} {'system':<9} {'rate':>12} {'p50 us':>9} {'p99 us':>9} {'CPU us/req':>10}  of its floor")
    for cell in TARGETS:
        for system in [s for s in SYSTEMS if s in cells.get(cell, {})]:
            run = cells[cell][system]
            rate = f"{run['mb_per_s']:.0f} MB/s" if "1m" in cell or "storm" in cell else f"{run['iops']:.0f} IOPS"
            cpu = "" if system == "disk" else f"{run['server_cpu_us_per_request']:.1f}"
            line = f"{cell:<14} {system:<9} {rate:>12} {run['p50_us']:>9.0f} {run['p99_us']:>9.0f} {cpu:>10}"
            if system == "sheep":
                third = "a third of " if run["floor_share"] < 1 else ""
                line += f"  {run['ratio']:.0%} of {third}{run['floor']}"
                if run["target"] is not None:
                    line += f", target {run['target']:.0%}" + ("" if run["meets_target"] else ": MISSED")
            print(line)
    for deed, took in snapshots.items():
        print(f"{deed}: {took['ms']} ms, with the command itself, target below {took['target_ms']} ms"
              + ("" if took["meets_target"] else ": MISSED"))
    print(f"memory of the sheep: resident {memory['resident_mib']} MiB, at their peak {memory['peak_mib']} MiB, "
          f"target below {memory['target_mib']} MiB" + ("" if memory["meets_target"] else ": MISSED"))
    print("disk: fio on a file, O_DIRECT, writes O_DSYNC (write4k-1: three jobs); qemu-nbd: the file with O_DIRECT, "
          "writes O_DSYNC; before: the same load before the snapshot; CPU: of the server, all sheep together")


main()
