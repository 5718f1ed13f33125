#!/usr/bin/python3
"""Loads a VDI through several sheep at once, over all that befalls them, and knows what each block may hold.

    tracked_writer.py write  STATE URI... [--mib N] [--first-mib N] [--seed N] [--flight N] [--block-only]
                             [--writes N] [--fill] [--from STATE] [--snapshot SECONDS COMMAND]
    tracked_writer.py verify STATE URI... [--tag TAG]
    tracked_writer.py tags   STATE

`write` goes on until SIGTERM, or until that many blocks (--writes) were written, each once, in random order; or all (--fill), 1 MiB at a time. There is one connection to each URI, made again whenever it
is lost. Writes of 4 KiB to 1 MiB, writes of zeros and reads are mixed (--block-only: 4 KiB writes alone). Each 4 KiB block carries its number
and the generation of its write, all over, so that a torn, lost, old or misplaced block is told apart. At most one request per block
is in flight. A request whose connection is lost may have been carried out or not: the block may hold either, until a later
write to it is acknowledged; then it must hold that one. Every read is compared with what the block may hold at that moment.

STATE.now, replaced every 50 ms: writes acknowledged, requests in flight, and the longest time without an acknowledgement, in ms, in all
and since the last SIGUSR1. --snapshot runs the command, with TAG replaced, every so often under full load: a snapshot may hold what
was acknowledged before or asked for until the command ended. Errors other than "this sheep shuts down" end the program with 1.
"""
import argparse
import errno
import json
import os
import random
import select
import signal
import struct
import subprocess
import sys
import time

import nbd

BLOCK = 4096
FILL_BLOCKS = 256
RETRY_SECONDS = 0.05
DRAIN_SECONDS = 60
STATUS_SECONDS = 0.05
READS, ZEROS = 0.1, 0.05


def content(block, generation):
    """What a write leaves in a block. Negative generations, and 0, are of zeros."""
    if generation <= 0:
        return bytes(BLOCK)
    return struct.pack("<8sQ", b"sheepdog", block << 32 | generation) * (BLOCK // 16)


def found_generation(block, data, allowed):
    """Which of these generations the block holds, or a sentence that says what is wrong."""
    for generation in allowed:
        if data == content(block, generation):
            return generation, None
    magic, word = struct.unpack("<8sQ", data[:16])
    held = "zeros" if data == bytes(BLOCK) else f"{magic} block {word >> 32} generation {word & 0xffffffff}"
    torn = "" if data == data[:16] * 256 else ", torn"
    return None, f"block {block}: expected a generation of {allowed}, found {held}{torn}"


class Blocks:
    """What each block may hold: the write acknowledged last, and those that came after it and were never answered."""

    def __init__(self, count, base=0):
        # Block number 0 here is this one of the VDI.
        self.base = base
        self.acked = [0] * count
        self.unsure = {}
        self.busy = set()
        self.generation = 0

    def allowed(self, block):
        return [self.acked[block], *self.unsure.get(block, ())]

    def begin_write(self, span, zeros):
        self.generation += 1
        generation = -self.generation if zeros else self.generation
        for block in span:
            self.unsure.setdefault(block, []).append(generation)
        self.busy.update(span)
        return generation

    def end_write(self, span, generation, ok):
        for block in span:
            self.busy.discard(block)
            if ok:
                # Later than any before it: those cannot come through any more, whatever became of them.
                self.acked[block] = generation
                self.unsure.pop(block, None)

    def handle_read(self, span, data):
        for index, block in enumerate(span):
            held, wrong = found_generation(self.base + block, data[index * BLOCK:][:BLOCK], self.allowed(block))
            if wrong:
                return wrong
            if held in self.unsure.get(block, ()):
                # It was carried out, so it stays. Others that were never answered may still follow it.
                self.unsure[block].remove(held)
                self.acked[block] = held
        return None

    def save(self):
        return {"base": self.base, "acked": self.acked, "unsure": self.unsure, "generation": self.generation}

    @staticmethod
    def load(path):
        with open(path) as file:
            state = json.load(file)
        blocks = Blocks(len(state["acked"]), state["base"])
        blocks.acked, blocks.generation = state["acked"], state["generation"]
        blocks.unsure = {int(block): held for block, held in state["unsure"].items()}
        return blocks


class Snapshots:
    """Takes snapshots by a command, and keeps what each may hold."""

    def __init__(self, every, command):
        self.every, self.command = every, command
        self.taken, self.failed, self.tried = {}, 0, 0
        self.running, self.due = None, time.monotonic() + every

    def note_write(self, span, generation):
        if self.running:
            for block in span:
                self.running["later"].setdefault(block, []).append(generation)

    def handle_tick(self, blocks, stopping):
        if self.running:
            code = self.running["process"].poll()
            if code is not None:
                if code == 0:
                    self.taken[self.running["tag"]] = {k: self.running[k] for k in ("acked", "unsure", "later")}
                else:
                    self.failed += 1
                self.running, self.due = None, time.monotonic() + self.every
        elif not stopping and time.monotonic() >= self.due:
            self.tried += 1
            tag = f"t{self.tried}"
            process = subprocess.Popen(self.command.replace("TAG", tag), shell=True, stdin=subprocess.DEVNULL)
            unsure = {block: list(held) for block, held in blocks.unsure.items()}
            self.running = {"tag": tag, "process": process, "acked": list(blocks.acked), "unsure": unsure, "later": {}}


class Connection:
    """One connection to one sheep, and its requests."""

    def __init__(self, uri, load):
        self.uri, self.load = uri, load
        self.handle, self.fd, self.retry_at, self.open = None, None, 0.0, {}

    def handle_tick(self, poller):
        if self.handle is None and time.monotonic() >= self.retry_at:
            self.handle = nbd.NBD()
            self.handle.set_uri_allow_local_file(True)
            try:
                self.handle.aio_connect_uri(self.uri)
            except nbd.Error:
                self.lose()
        if self.handle is None:
            return
        try:
            self.work(poller)
        except nbd.Error:
            self.lose()

    def work(self, poller):
        """Raises nbd.Error when the connection is gone, which any call may find out."""
        if self.handle.aio_is_ready() or self.handle.aio_is_processing():
            while len(self.open) < self.load.flight and self.load.wants_more():
                self.load.start_one(self)
        direction = self.handle.aio_get_direction()
        mask = (select.POLLIN if direction & nbd.AIO_DIRECTION_READ else 0) \
            | (select.POLLOUT if direction & nbd.AIO_DIRECTION_WRITE else 0)
        self.fd = self.handle.aio_get_fd()
        poller.register(self.fd, mask)

    def handle_ready(self, events):
        try:
            direction = self.handle.aio_get_direction()
            if events & (select.POLLIN | select.POLLHUP | select.POLLERR) and direction & nbd.AIO_DIRECTION_READ:
                self.handle.aio_notify_read()
            elif events & select.POLLOUT and direction & nbd.AIO_DIRECTION_WRITE:
                self.handle.aio_notify_write()
        except nbd.Error:
            self.lose()

    def lose(self):
        """The connection is gone: nothing of what was in flight is known."""
        for key in list(self.open):
            self.open.pop(key)(None)
        if self.handle is not None:
            self.load.reconnects += 1
        self.handle, self.fd, self.retry_at = None, None, time.monotonic() + RETRY_SECONDS


class Load:
    def __init__(self, args, blocks):
        self.args, self.blocks, self.flight = args, blocks, args.flight
        self.random = random.Random(args.seed)
        self.stopping, self.ticket, self.wrong = False, 0, []
        self.writes = self.reads = self.reconnects = 0
        self.bytes_acked = 0
        self.order = None
        if args.fill:
            self.order = [range(at, at + FILL_BLOCKS) for at in reversed(range(0, len(blocks.acked), FILL_BLOCKS))]
        elif args.writes:
            self.order = [range(at, at + 1) for at in self.random.sample(range(len(blocks.acked)), args.writes)]
        self.snapshots = Snapshots(float(args.snapshot[0]), args.snapshot[1]) if args.snapshot else None
        self.last_ack, self.longest, self.longest_marked, self.status_at = time.monotonic(), 0.0, 0.0, 0.0

    def wants_more(self):
        return not self.stopping and not self.wrong and (self.order is None or bool(self.order))

    def choose(self):
        if self.order is not None:
            return "write", self.order.pop()
        kind, length = "write", 1
        if not self.args.block_only:
            dice = self.random.random()
            kind = "read" if dice < READS else "zero" if dice < READS + ZEROS else "write"
            length = self.random.choice([1, 1, 1, 1, 1, 1, 4, 16, 256])
        while True:
            first = self.random.randrange(len(self.blocks.acked) - length + 1)
            span = range(first, first + length)
            if not self.blocks.busy.intersection(span):
                return kind, span

    def start_one(self, connection):
        kind, span = self.choose()
        self.ticket += 1
        ticket, handle = self.ticket, connection.handle
        if kind == "read":
            self.blocks.busy.update(span)
            # No nbd.Buffer: libnbd 1.14 never lets go of the memory of one that a request was made with.
            buffer, generation = bytearray(len(span) * BLOCK), 0
        else:
            generation = self.blocks.begin_write(span, kind == "zero")
            if self.snapshots:
                self.snapshots.note_write(span, generation)
            buffer = b"" if kind == "zero" else b"".join(content(self.blocks.base + block, generation) for block in span)

        def end(error):
            """None: lost with the connection."""
            ok = error == 0
            if kind != "read":
                self.blocks.end_write(span, generation, ok)
                if ok:
                    self.note_ack(len(span))
            else:
                self.blocks.busy.difference_update(span)
                if ok:
                    self.reads += 1
                    wrong = self.blocks.handle_read(span, bytes(buffer))
                    if wrong:
                        self.wrong.append(f"{connection.uri}: read under load: {wrong}")
            if error not in (None, 0, errno.ESHUTDOWN, errno.ENOTCONN):
                self.wrong.append(f"{connection.uri}: {kind} of blocks {span} failed: {os.strerror(error)}")

        connection.open[ticket] = end

        def done(error):
            code = error.value if hasattr(error, "value") else error
            if ticket in connection.open and connection.handle is handle:
                # What libnbd reports itself when the connection goes is no answer.
                connection.open.pop(ticket)(code)
            return 1

        at, size = (self.blocks.base + span.start) * BLOCK, len(span) * BLOCK
        try:
            if kind == "read":
                handle.aio_pread(buffer, at, completion=done)
            elif kind == "zero":
                handle.aio_zero(size, at, completion=done)
            else:
                handle.aio_pwrite(buffer, at, completion=done)
        except nbd.Error:
            # Not even sent, or the connection went meanwhile: `lose` would take it for unsure too.
            connection.open.pop(ticket, lambda _: None)(None)
            raise

    def note_ack(self, count):
        self.writes += 1
        self.bytes_acked += count * BLOCK
        now = time.monotonic()
        gap, self.last_ack = now - self.last_ack, now
        self.longest, self.longest_marked = max(self.longest, gap), max(self.longest_marked, gap)
        if gap > 1:
            print(f"{time.strftime('%H:%M:%S')} {os.path.basename(self.args.state)}: {gap:.1f} s without an acknowledgement", flush=True)

    def handle_mark(self, *_):
        self.longest_marked = 0.0

    def write_status(self, flying):
        now = time.monotonic()
        if now < self.status_at:
            return
        self.status_at = now + STATUS_SECONDS
        pause = now - self.last_ack
        words = [self.writes, flying, *(int(max(x, pause) * 1000) for x in (self.longest, self.longest_marked)), self.reads,
                 self.bytes_acked]
        with open(self.args.state + ".tmp", "w") as file:
            file.write(" ".join(map(str, words)) + "\n")
        os.replace(self.args.state + ".tmp", self.args.state + ".now")

    def run(self):
        signal.signal(signal.SIGUSR1, self.handle_mark)
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stopping", True))
        connections = [Connection(uri, self) for uri in self.args.uri]
        give_up = None
        while True:
            poller = select.poll()
            for connection in connections:
                connection.handle_tick(poller)
            if self.snapshots:
                self.snapshots.handle_tick(self.blocks, self.stopping)
            flying = sum(len(connection.open) for connection in connections)
            self.write_status(flying)
            if not self.wants_more():
                give_up = give_up or time.monotonic() + DRAIN_SECONDS
                if self.wrong or flying == 0 and not (self.snapshots and self.snapshots.running):
                    break
                if time.monotonic() > give_up:
                    self.wrong.append(f"{flying} requests were not answered within {DRAIN_SECONDS} s of the end")
                    break
            by_fd = {c.fd: c for c in connections if c.fd is not None}
            for fd, events in poller.poll(50):
                by_fd[fd].handle_ready(events)
        self.status_at = 0.0
        self.write_status(0)


def write(args):
    blocks = Blocks.load(args.base) if args.base else Blocks(args.mib * 2**20 // BLOCK, args.first_mib * 2**20 // BLOCK)
    load = Load(args, blocks)
    load.run()
    state = blocks.save()
    if load.snapshots:
        state["snapshots"] = load.snapshots.taken
    with open(args.state, "w") as file:
        json.dump(state, file)
    snapshots = f", {len(load.snapshots.taken)} snapshots taken and {load.snapshots.failed} not" if load.snapshots else ""
    print(f"{os.path.basename(args.state)}: {load.writes} writes acknowledged, {load.reads} reads right, {len(blocks.unsure)} blocks unsure, "
          f"{load.reconnects} connections lost or refused{snapshots}; longest time without an acknowledgement {load.longest:.2f} s")
    if load.wrong:
        sys.exit("\n".join(load.wrong[:20]))


def may_hold(state, tag):
    """A function from block to the generations that it may hold."""
    if tag is None:
        return lambda block: [state["acked"][block], *state["unsure"].get(str(block), [])]
    snapshot = state["snapshots"][tag]
    return lambda block: [snapshot["acked"][block], *snapshot["unsure"].get(str(block), []),
                          *snapshot["later"].get(str(block), [])]


def verify(args):
    with open(args.state) as file:
        state = json.load(file)
    allowed, count, base = may_hold(state, args.tag), len(state["acked"]), state["base"]
    first_seen, wrong = None, []
    for uri in args.uri:
        handle = nbd.NBD()
        handle.connect_uri(uri)
        seen = []
        for start in range(0, count, 256):
            size = min(256, count - start)
            data = bytes(handle.pread(size * BLOCK, (base + start) * BLOCK))
            for block in range(start, start + size):
                held, bad = found_generation(base + block, data[(block - start) * BLOCK:][:BLOCK], allowed(block))
                seen.append(held)
                if bad:
                    wrong.append(f"{uri}: {bad}")
        handle.shutdown()
        if first_seen is not None and first_seen != seen:
            differing = [block for block in range(count) if first_seen[block] != seen[block]]
            wrong.append(f"{uri} shows other blocks than {args.uri[0]}: {differing[:20]}")
        first_seen = first_seen or seen
    if wrong:
        sys.exit("\n".join(wrong[:20]) + f"\n{len(wrong)} findings")
    print(f"{count} blocks of 4 KiB hold what they may{f' at {args.tag}' if args.tag else ''}, through each of {len(args.uri)} sheep")


def tags(args):
    with open(args.state) as file:
        print("\n".join(json.load(file).get("snapshots", {})))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["write", "verify", "tags"])
    parser.add_argument("state")
    parser.add_argument("uri", nargs="*")
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--first-mib", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--flight", type=int, default=16)
    parser.add_argument("--block-only", action="store_true")
    parser.add_argument("--fill", action="store_true")
    parser.add_argument("--writes", type=int, default=0)
    parser.add_argument("--from", dest="base")
    parser.add_argument("--snapshot", nargs=2, metavar=("SECONDS", "COMMAND"))
    parser.add_argument("--tag")
    args = parser.parse_args()
    {"write": write, "verify": verify, "tags": tags}[args.what](args)


main()
