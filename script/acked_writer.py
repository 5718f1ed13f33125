#!/usr/bin/python3
"""Writes random blocks over NBD and remembers which writes were acknowledged, to ask for them later.

    acked_writer.py write  STATE URI [--mib N] [--writes N] [--seed N] [--flush N]
    acked_writer.py verify STATE URI... [--after-power-loss]

Every 4 KiB block carries its number and the generation of its write, all over, so that a torn, lost, old or misplaced
block is told apart. At most one write per block is in flight; so a block may hold the generation that was acknowledged
last or one that was under way when the server went, and nothing else. `write` ends by itself after --writes, or when
the server is gone (which is then not an error); STATE.acked holds the number of acknowledged writes meanwhile.

With --flush it flushes after every N acknowledgements, and goes on writing meanwhile. After a power loss of a cluster in write-back mode a block may hold
what the last flush covered or anything written there since.
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
    def __init__(self, handle, state_path, blocks, seed, flush):
        self.handle, self.state_path, self.blocks, self.flush = handle, state_path, blocks, flush
        # Of each block: what the last flush covers, and what was written, or begun to be, since that.
        self.flushed, self.since, self.flushes = {}, {}, 0
        self.random = random.Random(seed)
        self.acked, self.flying = {}, {}
        self.count, self.lost, self.flush_wanted = 0, False, False
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
            self.since.setdefault(block, []).append(generation)

        def done(error):
            # An error says nothing about the blocks: they stay "under way".
            if (error.value if hasattr(error, "value") else error) != 0:
                self.lost = True
                return 1
            for block in span:
                self.acked[block] = self.flying.pop(block)
            self.note_ack()
            if self.flush and self.count % self.flush == 0:
                self.flush_wanted = True
            return 1

        self.handle.aio_pwrite(data, first * BLOCK, completion=done)

    def start_flush(self):
        covered = dict(self.acked)

        def done(error):
            if (error.value if hasattr(error, "value") else error) != 0:
                self.lost = True
                return 1
            self.flushes += 1
            for block, generation in covered.items():
                # A flush that was sent earlier may be answered later.
                if generation > self.flushed.get(block, 0):
                    self.flushed[block] = generation
                    self.since[block] = [other for other in self.since[block] if other > generation]
            return 1

        self.flush_wanted = False
        self.handle.aio_flush(completion=done)

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
                if self.flush_wanted:
                    self.start_flush()
                self.handle.poll(-1)
        except nbd.Error:
            self.lost = True

    def save(self):
        state = {"blocks": self.blocks, "acked": self.acked, "flying": self.flying, "flushed": self.flushed, "since": self.since}
        with open(self.state_path + ".tmp", "w") as file:
            json.dump(state, file)
        os.rename(self.state_path + ".tmp", self.state_path)


def write(args):
    handle = nbd.NBD()
    handle.connect_uri(args.uri[0])
    writer = Writer(handle, args.state, args.mib * 2**20 // BLOCK, args.seed, args.flush)
    writer.run(args.writes)
    writer.save()
    end = "the server went away" if writer.lost else "done"
    flushes = f"{writer.flushes} flushes answered, " if args.flush else ""
    print(f"{writer.count} writes acknowledged, {flushes}{len(writer.flying)} blocks under way when it ended: {end}; "
          f"longest time without an acknowledgement {writer.longest_pause:.2f} s")


def verify(args):
    with open(args.state) as file:
        state = json.load(file)
    seen = None
    for uri in args.uri:
        handle = nbd.NBD()
        handle.connect_uri(uri)
        generations = [check(handle, state, block, args.after_power_loss) for block in range(state["blocks"])]
        if seen is not None and seen != generations:
            sys.exit(f"{uri} shows other blocks than {args.uri[0]}")
        seen = generations
    kept = state["flushed" if args.after_power_loss else "acked"]
    print(f"{len(kept)} {'flushed' if args.after_power_loss else 'acknowledged'} blocks of 4 KiB are there, and nothing else is"
          + (f", through each of {len(args.uri)} sheep" if len(args.uri) > 1 else ""))


def check(handle, state, block, after_power_loss, chunk={}):
    """The generation of a block, if it is one that it may have."""
    step = 256
    if chunk.get("at") != (id(handle), block // step):
        count = min(step, state["blocks"] - block // step * step)
        chunk["at"] = (id(handle), block // step)
        chunk["data"] = bytes(handle.pread(count * BLOCK, block // step * step * BLOCK))
    found = chunk["data"][block % step * BLOCK:][:BLOCK]
    if after_power_loss:
        allowed = [state["flushed"].get(str(block), 0), *state["since"].get(str(block), [])]
    else:
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
    parser.add_argument("--flush", type=int, default=0)
    parser.add_argument("--after-power-loss", action="store_true")
    args = parser.parse_args()
    {"write": write, "verify": verify}[args.what](args)


main()
