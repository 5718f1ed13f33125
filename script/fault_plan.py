#!/usr/bin/env python3
"""Draws a sequence of faults from a seed: the same seed always makes the same plan.

    fault_plan.py SEED SECONDS HOSTS

Prints one line for each deed, in the order of time: SECONDS DEED HOST... Every fault ends within the plan. Of one host's process only one
fault is under way at any time; links are cut beside that as it comes.

    kill, start     SIGKILL                         cut_way, mend_way     packets from the first host to the second
    stop, cont      SIGSTOP and SIGCONT             cut_link, mend_link   both ways
    shut, start     SIGTERM, as for a restart       unplug, plug_in       all links of a host
    power           SIGKILL of all; they start again in any order
"""

import random
import sys

WEIGHTS = {"kill": 5, "stop": 4, "shut": 3, "cut_way": 4, "cut_link": 3, "unplug": 3, "power": 1}
ENDS = {"kill": "start", "stop": "cont", "shut": "start", "cut_way": "mend_way", "cut_link": "mend_link", "unplug": "plug_in"}
DURATIONS = {"kill": (0.3, 8), "stop": (1, 8), "shut": (0.3, 4), "cut_way": (0.5, 12), "cut_link": (0.5, 12), "unplug": (0.5, 12)}
GAP = (0.3, 6)
LULL_CHANCE, LULL = 0.15, (8, 15)


def plan(seed, seconds, hosts):
    draw = random.Random(seed)
    deeds, busy = [], [0.0] * hosts
    at = draw.uniform(1, 2)
    while at < seconds:
        kind = draw.choices(list(WEIGHTS), WEIGHTS.values())[0]
        if kind == "power":
            at = max([at, *busy]) + 0.1
            if at >= seconds - 2:
                break
            deeds.append((at, kind, range(hosts)))
            for host in draw.sample(range(hosts), hosts):
                busy[host] = at + draw.uniform(0.3, 2)
                deeds.append((busy[host], "start", [host]))
        else:
            end = min(at + draw.uniform(*DURATIONS[kind]), seconds)
            on = draw.sample(range(hosts), 2 if kind in ("cut_way", "cut_link") else 1)
            if kind not in ("cut_way", "cut_link", "unplug"):
                if busy[on[0]] > at:
                    at += draw.uniform(*GAP)
                    continue
                # A process that was just started is left alone until it is up.
                busy[on[0]] = end + 2
            deeds += [(at, kind, on), (end, ENDS[kind], on)]
        at += draw.uniform(*(LULL if draw.random() < LULL_CHANCE else GAP))
    return sorted(deeds, key=lambda deed: deed[0])


for time, deed, on in plan(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])):
    print(f"{time:.2f} {deed} {' '.join(map(str, on))}")
