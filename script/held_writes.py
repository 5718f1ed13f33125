#!/usr/bin/python3
"""Are writes that a cut off sheep held carried out exactly once, in spite of what was written through another sheep meanwhile?

    held_writes.py overwrite SEEN URI MIB     notes what each block holds, overwrites it with a mark, and prints when the first answer came
    held_writes.py check SEEN STATE URI...    after the old client's writer (tracked_writer.py) ended with STATE

A held write was carried out before the mark, and then the mark saw it and must stay; or after the mark, and then it must stay. Seen before
the mark and there again after it: carried out twice. Acknowledged, and neither seen nor there: not at all.
"""
import json
import struct
import sys
import time

import nbd

BLOCK = 4096
CHUNK = 1 << 20
MARK = struct.pack("<8sQ", b"overmark", 0) * (BLOCK // 16)


def connect(uri):
    handle = nbd.NBD()
    handle.connect_uri(uri)
    return handle


def generation(data):
    magic, word = struct.unpack("<8sQ", data[:16])
    if data == MARK:
        return "mark"
    if data != data[:16] * (BLOCK // 16):
        return "torn"
    return word & 0xffffffff if magic == b"sheepdog" else 0 if data == bytes(BLOCK) else "foreign"


def read(handle, at):
    data = bytes(handle.pread(CHUNK, at))
    return [generation(data[i:i + BLOCK]) for i in range(0, CHUNK, BLOCK)]


def overwrite(seen_path, uri, mib):
    handle = connect(uri)
    seen = read(handle, 0)
    print(time.time_ns() // 1000000, flush=True)
    for at in range(CHUNK, mib * CHUNK, CHUNK):
        seen += read(handle, at)
    for at in range(0, mib * CHUNK, CHUNK):
        handle.pwrite(MARK * (CHUNK // BLOCK), at)
    handle.shutdown()
    with open(seen_path, "w") as file:
        json.dump(seen, file)


def check(seen_path, state_path, uris):
    with open(seen_path) as seen_file, open(state_path) as state_file:
        seen, state = json.load(seen_file), json.load(state_file)
    late, wrong = 0, []
    for uri in uris:
        handle, late = connect(uri), 0
        for at in range(0, len(seen) * BLOCK, CHUNK):
            for block, held in enumerate(read(handle, at), at // BLOCK):
                acked, unsure = state["acked"][block], state["unsure"].get(str(block), [])
                allowed = ["mark"] if acked == seen[block] else [acked]
                allowed += [later for later in unsure if later != seen[block]]
                if seen[block] in unsure:
                    # Carried out before the mark, but its answer was lost.
                    allowed.append("mark")
                late += held != "mark"
                if held not in allowed:
                    wrong.append(f"{uri}: block {block} holds {held}, was {seen[block]} before the mark; acknowledged {acked}, unsure {unsure}")
        handle.shutdown()
    if wrong:
        sys.exit("\n".join(wrong[:20]) + f"\n{len(wrong)} findings")
    print(f"{late} held writes were carried out once, after what was written meanwhile; {len(seen) - late} blocks stayed as that left them")


match sys.argv[1:]:
    case ["overwrite", seen, uri, mib]:
        overwrite(seen, uri, int(mib))
    case ["check", seen, state, *uris]:
        check(seen, state, uris)
    case _:
        sys.exit(__doc__)
