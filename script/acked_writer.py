#!/usr/bin/python3
"""Writes random blocks over NBD and remembers which writes were acknowledged, to ask for them later.

    acked_writer.py write  STATE URI [--mib N] [--writes N] [--seed N]
    acked_writer.py verify STATE URI...

Every 4 KiB block carries its number and the generation of its write, all over, so that a torn, lost, old or misplaced
block is told apart. At most one write per block is in flight; so a block may hold the generation that was acknowledged
last or one that was under way when the server went, and nothing else. `write` ends by itself after --writes, or when
the server is gone (which is then not an error); STATE.acked holds the number of acknowledged writes meanwhile.
"""
import argparse
import json
import os
import random
import struct
import sys
import time

import nbd

BLOCK = 4096
IN_FLIGHT = 16


def content(block, generation):
    return struct.pack("<8sQ", b"sheepdog", block << 32 | generation) * (BLOCK // 16)


class Writer:
    def __init__(self, handle, state_path, blocks, seed):
        self.handle, self.state_path, self.blocks = handle, state_path, blocks
        self.random = random.Random(seed)
        self.acked, self.flying = {}, {}
        self.count, self.lost = 0, False
        self.last_ack, self.longest_pause = time.monotonic(), 0.0

    def start_one(self, generation):
        length = self.random.choice([1, 1, 1, 1, 1, 1, 4, 16, 256])
        while True:
            first = self.random.randrange(self.blocks - length + 1)
            span = range(first, first + length)
            if not any(block in self.flying for block in span):
                break
        data = b"".join(content(block, generation) for block in span)
        for block in span:
            self.flying[block] = generation

        def done(error):
            # An error says nothing about the blocks: they stay "under way".
            if (error.value if hasattr(error, "value") else error) != 0:
                self.lost = True
                return 1
            for block in span:
                self.acked[block] = self.flying.pop(block)
            self.note_ack()
            return 1

        self.handle.aio_pwrite(data, first * BLOCK, completion=done)

    def note_ack(self):
        self.count += 1
        now = time.monotonic()
        self.longest_pause, self.last_ack = max(self.longest_pause, now - self.last_ack), now
        if self.count % 50 == 0:
            with open(self.state_path + ".acked", "w") as file:
                file.write(f"{self.count}\n")

    def run(self, writes):
        generation = 0
        try:
            while not self.lost and self.count < writes:
                while self.handle.aio_in_flight() < IN_FLIGHT and generation < writes:
                    generation += 1
                    self.start_one(generation)
                self.handle.poll(-1)
        except nbd.Error:
            self.lost = True

    def save(self):
        state = {"blocks": self.blocks, "acked": self.acked, "flying": self.flying}
        with open(self.state_path + ".tmp", "w") as file:
            json.dump(state, file)
        os.rename(self.state_path + ".tmp", self.state_path)


def write(args):
    handle = nbd.NBD()
    handle.connect_uri(args.uri[0])
    writer = Writer(handle, args.state, args.mib * 2**20 // BLOCK, args.seed)
    writer.run(args.writes)
    writer.save()
    end = "the server went away" if writer.lost else "done"
    print(f"{writer.count} writes acknowledged, {len(writer.flying)} blocks under way when it ended: {end}; "
          f"longest time without an acknowledgement {writer.longest_pause:.2f} s")


def verify(args):
    with open(args.state) as file:
        state = json.load(file)
    seen = None
    for uri in args.uri:
        handle = nbd.NBD()
        handle.connect_uri(uri)
        generations = [check(handle, state, block) for block in range(state["blocks"])]
        if seen is not None and seen != generations:
            sys.exit(f"{uri} shows other blocks than {args.uri[0]}")
        seen = generations
    print(f"{len(state['acked'])} acknowledged blocks of 4 KiB are there, and nothing else is"
          + (f", through each of {len(args.uri)} sheep" if len(args.uri) > 1 else ""))


def check(handle, state, block, chunk={}):
    """The generation of a block, if it is one that it may have."""
    step = 256
    if chunk.get("at") != (id(handle), block // step):
        count = min(step, state["blocks"] - block // step * step)
        chunk["at"] = (id(handle), block // step)
        chunk["data"] = bytes(handle.pread(count * BLOCK, block // step * step * BLOCK))
    found = chunk["data"][block % step * BLOCK:][:BLOCK]
    allowed = [table[str(block)] for table in (state["acked"], state["flying"]) if str(block) in table]
    if str(block) not in state["acked"]:
        allowed.append(0)
    for generation in allowed:
        if found == (content(block, generation) if generation else bytes(BLOCK)):
            return generation
    head = struct.unpack("<8sQ", found[:16])
    sys.exit(f"block {block}: expected a generation of {allowed}, found {head[0]} block {head[1] >> 32} "
             f"generation {head[1] & 0xffffffff}{'' if found == found[:16] * 256 else ' (torn)'}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["write", "verify"])
    parser.add_argument("state")
    parser.add_argument("uri", nargs="+")
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--writes", type=int, default=10**9)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    {"write": write, "verify": verify}[args.what](args)


main()
