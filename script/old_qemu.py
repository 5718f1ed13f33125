#!/usr/bin/env python3
"""Plays QEMU 5.0 to a sheep: the headers recorded in front of the original server, and what it answered to each.

    old_qemu.py PORT

The VDI "alice" must not exist; the cluster has one sheep and one copy. Ends with an error where an answer differs in any bit.
"""

import socket
import struct
import sys

INODE_BYTES = 4198968
HEADER_BYTES = 4664
NAME = b"alice"
VID = bytes.fromhex("0739a000")


def padded(text):
    return text.ljust(256, b"\0")


def receive(sock, count):
    parts = []
    while count:
        part = sock.recv(min(count, 1 << 20))
        if not part:
            sys.exit("the sheep has closed the connection")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def connect():
    return socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=20)


def ask(sock, what, request, payload, reply):
    """Sends a header of hex digits and a payload; the reply's header must be the one given."""
    request, reply = bytes.fromhex(request), bytes.fromhex(reply)
    assert len(request) == len(reply) == 48
    # In two pieces, as QEMU sends them.
    sock.sendall(request)
    sock.sendall(payload)
    got = receive(sock, 48)
    print(f"> {what:12} {request.hex(' ', 4)}\n< {'':12} {got.hex(' ', 4)}")
    if got != reply:
        sys.exit(f"expected       {reply.hex(' ', 4)}")
    return receive(sock, struct.unpack_from("<I", got, 12)[0])


def once(*conversation):
    with connect() as sock:
        return ask(sock, *conversation)


once("NEW_VDI",
     "00110100 00000000 00000000 00010000 00000004 00000000 00000000 00000016 00000000 00000000 00000000 00000000", padded(NAME),
     "00110000 01000000 00000000 00000000 00000000 00000000 0739a000 00000000 01160000 00000000 00000000 00000000")
data = connect()
once("LOCK_VDI",
     "01120100 00000000 00000000 00020000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000", padded(NAME) + padded(b""),
     "00120000 01000000 00000000 00000000 00000000 00000000 0739a000 00000000 01160000 00000000 00000000 00000000")
inode = once("READ inode",
             "00020400 00000000 00000000 38124000 00000000 0739a080 00000000 00000000 00000000 00000000 00000000 00000000", b"",
             "00020000 01000000 00000000 38124000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000")
assert len(inode) == INODE_BYTES and inode.startswith(NAME + b"\0") and inode[560:564] == VID
assert not any(inode[HEADER_BYTES:]), "nothing is allocated"
ask(data, "CREATE",
    "00010500 00000000 00000000 00100000 03000000 0739a000 00000000 00000000 01000000 00000000 00200000 00000000", b"Z" * 4096,
    "00010000 01000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000")
ask(data, "WRITE inode",
    "00030500 00000000 01000000 04000000 00000000 0739a080 00000000 00000000 01000000 00000000 44120000 00000000", VID,
    "00030000 01000000 01000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000")
# The original says INVALID_PARMS, and QEMU never flushes again.
ask(data, "FLUSH_VDI",
    "00160400 00000000 02000000 00000000 00000000 0739a080 00000000 00000000 01000000 00000000 00000000 00000000", b"",
    "00160000 01000000 02000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000")
once("WRITE header",
     "00030500 00000000 00000000 38120000 00000000 0739a080 00000000 00000000 01000000 00000000 00000000 00000000",
     inode[:256] + padded(b"tag") + inode[512:HEADER_BYTES],
     "00030000 01000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000")
read = ask(data, "READ",
           "00020400 00000000 03000000 00300000 03000000 0739a000 00000000 00000000 01000000 00000000 00100000 00000000", b"",
           "00020000 01000000 03000000 00300000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000")
assert read == bytes(4096) + b"Z" * 4096 + bytes(4096), "never trimmed, whatever is zero"
entry = once("READ entry",
             "00020400 00000000 00000000 04000000 00000000 0739a080 00000000 00000000 01000000 00000000 44120000 00000000", b"",
             "00020000 01000000 00000000 04000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000")
assert entry == VID
data.close()
once("RELEASE_VDI",
     "00130100 00000000 00000000 06000000 00000000 00000000 0739a000 00000000 00000000 00000000 00000000 00000000", NAME + b"\0",
     "00130000 01000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000")
