#!/usr/bin/python3
"""Writes a block of every object of a VDI and trims it again: `enter_objects.py URI [OBJECT_BYTES]`.

Each object is in the block table then, and takes no space.
"""
import sys

import nbd

BLOCK = 4096
IN_FLIGHT = 64
# Objects that have a block at the same time.
AT_ONCE = 1000


def main():
    object_bytes = int(sys.argv[2]) if len(sys.argv) > 2 else 4 << 20
    handle = nbd.NBD()
    handle.connect_uri(sys.argv[1])
    flying = set()

    def settle(most):
        while len(flying) > most:
            handle.poll(-1)
            for cookie in [c for c in flying if handle.aio_command_completed(c)]:
                flying.discard(cookie)

    data = nbd.Buffer.from_bytearray(bytearray(b"\x5a" * BLOCK))
    size, step = handle.get_size(), object_bytes * AT_ONCE
    for first in range(0, size, step):
        for begin in (lambda at: handle.aio_pwrite(data, at), lambda at: handle.aio_trim(BLOCK, at)):
            for at in range(first, min(first + step, size), object_bytes):
                settle(IN_FLIGHT - 1)
                flying.add(begin(at))
            settle(0)
    handle.shutdown()


main()
