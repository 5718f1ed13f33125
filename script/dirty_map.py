#!/usr/bin/env python3
"""Compares what a map of changes says with the bytes themselves.

    dirty_map.py MAP OLD NEW DIRTY_MAX

MAP: of nbdinfo --json --map or of qemu-img map --output=json. OLD, NEW: the contents, as files. Ends with an error if the map does not cover NEW, if
a block that differs is not called dirty, or if more than DIRTY_MAX bytes are.
"""

import json
import sys

BLOCK = 4096


def extents(path):
    """Start, end and dirtiness of each extent."""
    with open(path) as file:
        for extent in json.load(file):
            if "start" in extent:
                # qemu-img has no word for it: by the manual, what is dirty is told as no data.
                start, dirty = extent["start"], not extent["data"]
            else:
                start, dirty = extent["offset"], bool(extent["type"] & 1)
            yield start, start + extent["length"], dirty


def differing_blocks(old, new):
    for at in range(0, len(new), BLOCK):
        if new[at : at + BLOCK] != old[at : at + BLOCK].ljust(len(new[at : at + BLOCK]), b"\0"):
            yield at


def main():
    with open(sys.argv[2], "rb") as file:
        old = file.read()
    with open(sys.argv[3], "rb") as file:
        new = file.read()
    at, dirty_bytes, clean = 0, 0, []
    for start, end, dirty in extents(sys.argv[1]):
        if start != at or end <= start:
            sys.exit(f"an extent from {start} to {end} where one from {at} must be")
        at = end
        if dirty:
            dirty_bytes += end - start
        else:
            clean.append((start, end))
    if at != len(new):
        sys.exit(f"the map ends at {at}, the export at {len(new)}")
    differing = list(differing_blocks(old, new))
    for block in differing:
        if any(start < block + BLOCK and block < end for start, end in clean):
            sys.exit(f"the block at {block} differs, and is called clean")
    print(f"{len(differing) * BLOCK} bytes differ, {dirty_bytes} are called dirty")
    if dirty_bytes > int(sys.argv[4]):
        sys.exit(f"no more than {sys.argv[4]} were expected")


main()
