#!/usr/bin/env python3
"""Writes one after the other, each numbered, so that a copy of the disk tells after which write it was taken.

    numbered_writer.py write URI ACKED SECONDS     through qemu-io; the file ACKED holds how many were acknowledged
    numbered_writer.py check FILE FIRST LAST       FILE shows the disk as it was after one of the writes FIRST .. LAST
    numbered_writer.py reads COUNT                 qemu-io commands that verify the disk after COUNT writes

Write number k, from 0, puts 64 KiB of one value into place k modulo 24. Places lie 1088 KiB apart: in objects of their own and several in one
object, never across a border, so each write is whole or not there.
"""

import os
import subprocess
import sys
import time

PLACES = 24
STRIDE = 1088 << 10
LENGTH = 64 << 10


def value_after(count, place):
    """What the place holds after that many writes; zeros at first."""
    times = (count - place + PLACES - 1) // PLACES if count > place else 0
    return 1 + (times - 1) % 255 if times else 0


def write(uri, acked, seconds):
    # Line by line: the answer to each write is awaited.
    command = ["stdbuf", "-oL", "qemu-io", "-f", "raw", uri]
    io = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        place = count % PLACES
        io.stdin.write(f"write -P {value_after(count + 1, place)} {place * STRIDE} {LENGTH}\n")
        io.stdin.flush()
        while "wrote " not in (said := io.stdout.readline()):
            if not said or "fail" in said or "rror" in said:
                sys.exit(f"write {count} failed: {said}")
        count += 1
        with open(acked + ".new", "w") as file:
            file.write(f"{count}\n")
        os.replace(acked + ".new", acked)
    io.stdin.close()
    print(f"{count} writes")
    sys.exit(io.wait())


def check(path, first, last):
    found = []
    with open(path, "rb") as file:
        for place in range(PLACES):
            file.seek(place * STRIDE)
            data = file.read(LENGTH)
            if data.count(data[0]) != LENGTH:
                sys.exit(f"place {place} holds more than one write")
            found.append(data[0])
    for count in range(first, last + 1):
        if found == [value_after(count, place) for place in range(PLACES)]:
            print(f"as after write {count}, of {first} .. {last}")
            return
    sys.exit(f"after no write from {first} to {last} the disk was like this: {found}")


def reads(count):
    for place in range(PLACES):
        print(f"read -P {value_after(count, place)} {place * STRIDE} {LENGTH}")


match sys.argv[1:]:
    case ["write", uri, acked, seconds]:
        write(uri, acked, float(seconds))
    case ["check", path, first, last]:
        check(path, int(first), int(last))
    case ["reads", count]:
        reads(int(count))
    case _:
        sys.exit(__doc__)
