#!/usr/bin/python3
"""Hostile clients for the scenarios.

    garbage.py native ADDRESS...       noise and broken frames of the native protocol
    garbage.py nbd ADDRESS...          noise and broken handshakes and requests of NBD
    garbage.py vanish ADDRESS...       clients of the VDI `disk` that disappear in the middle of something
    garbage.py whole-blocks NBD_URI    every 4 KiB block of the VDI is as `vanish` found it or wholly as it wrote it

An ADDRESS is tcp:HOST:PORT or unix:PATH. Each case must be answered or ended by the server within some seconds, and the
server must still answer a good request afterwards.
"""
import random
import socket
import struct
import sys

RANDOM = random.Random(20)
PATIENCE = 10
NBD_OPTION, NBD_REPLY = 0x49484156454F5054, 0x0003E889045565A9
OLD, NEW = 0x11, 0x77


def connect(address):
    kind, rest = address.split(":", 1)
    if kind == "unix":
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE)
        sock.connect(rest)
    else:
        host, port = rest.rsplit(":", 1)
        sock = socket.create_connection((host, int(port)), PATIENCE)
    return sock


def exchange(address, data, half_close=True):
    """Sends the bytes, says that no more will come, and reads until the server closes."""
    with connect(address) as sock:
        try:
            sock.sendall(data)
            if half_close:
                sock.shutdown(socket.SHUT_WR)
            received = 0
            while part := sock.recv(1 << 16):
                received += len(part)
                if received > 64 << 20:
                    sys.exit(f"{address}: more than 64 MiB in answer to {data[:48].hex()}...")
        except (ConnectionResetError, BrokenPipeError):
            pass
        except TimeoutError:
            sys.exit(f"{address}: neither answered nor closed: {data[:64].hex()}... ({len(data)} bytes)")


def exactly(sock, count):
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise ConnectionResetError
        data += part
    return data


# ---- native ---------------------------------------------------------------------------------------------------------

def native_header(opcode, flags=0, length=0, variant=b"", version=2):
    return struct.pack("<BBHIII", version, opcode, flags, 0, 7, length) + variant.ljust(32, b"\0")[:32]


def native_alive(address):
    with connect(address) as sock:
        # GET_CLUSTER_DEFAULT
        sock.sendall(native_header(0x18))
        reply = exactly(sock, 48)
        length, result = struct.unpack_from("<II", reply, 12)
        if (reply[1], length, result) != (0x18, 0, 0):
            sys.exit(f"{address}: answered {reply.hex()}")


def native(address):
    write, huge = 1, 0xFFFFFFFF
    cases = [b"", b"\0", b"\xff" * 47, b"\0" * 48, b"\xff" * 48, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 9]
    for opcode in range(256):
        version = 0x0A if opcode >= 0x80 else 2
        # Opcodes that end or erase a cluster do what they are told, which is not what is tested here.
        if opcode in (0x84, 0x85, 0x8A, 0x9A):
            continue
        cases.append(native_header(opcode, write, huge, version=version))
        cases.append(native_header(opcode, write, 4096, version=version) + b"x" * 100)
        noise = RANDOM.randbytes(32)
        if opcode not in (0x17, 0x11):
            cases.append(native_header(opcode, 0, huge, noise, version))
            cases.append(native_header(opcode, write, 256, noise, version) + RANDOM.randbytes(256))
        cases.append(native_header(opcode, version=255))
    for length in (0, 1, 255, 257, 511, 513, 1 << 20):
        cases.append(native_header(0x14, write, length) + b"\xff" * length)
        cases.append(native_header(0x11, write, length, struct.pack("<Q", 1 << 63)) + b"\xff" * length)
    # Beyond the end of an object, and of an object that no VDI has.
    for oid in (0, 0x8000000000000000, (1 << 64) - 1, 0x0000010000000000):
        for offset, length in ((1 << 22, 4096), ((1 << 22) - 512, 4096), (0xFFFFFFFF, 0xFFFFFFFF), (0, 1 << 31)):
            variant = struct.pack("<QQIII", oid, 0, 0, 0, offset)
            cases.append(native_header(0x02, 0, length, variant))
            cases.append(native_header(0x03, write, length, variant) + b"z" * 5000)
    cases += [RANDOM.randbytes(RANDOM.randrange(1, 3000)) for _ in range(200)]
    return cases


# ---- NBD ------------------------------------------------------------------------------------------------------------

def nbd_option(option, data, length=None):
    return struct.pack(">QII", NBD_OPTION, option, len(data) if length is None else length) + data


def nbd_open(address, name):
    """A connection in transmission, with simple replies."""
    sock = connect(address)
    exactly(sock, 18)
    export = name.encode()
    sock.sendall(struct.pack(">I", 3) + nbd_option(7, struct.pack(">I", len(export)) + export + b"\0\0"))
    while True:
        magic, _, reply, length = struct.unpack(">QIII", exactly(sock, 20))
        exactly(sock, length)
        assert magic == NBD_REPLY and reply < 1 << 31, f"{address}: cannot open {name}: reply {reply:x}"
        if reply == 1:
            return sock


def nbd_request(command, offset, length, flags=0, cookie=1):
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length)


def nbd_alive(address):
    with nbd_open(address, "victim") as sock:
        sock.sendall(nbd_request(0, 0, 4096, cookie=77))
        magic, error, cookie = struct.unpack(">IIQ", exactly(sock, 16))
        if (magic, error, cookie) != (0x67446698, 0, 77):
            sys.exit(f"{address}: a good read was answered {magic:x} {error} {cookie}")


def nbd(address):
    flags = struct.pack(">I", 3)
    cases = [b"", b"\0", b"\xff" * 4, b"\xff" * 4096, struct.pack(">I", 0x80000003)]
    for option in list(range(0, 16)) + [0x7FFFFFFF, 0xFFFFFFFF]:
        for length in (0, 1, 4, 5, 100, 65536, 0x7FFFFFFF, 0xFFFFFFFF):
            cases.append(flags + nbd_option(option, b"\xff" * min(length, 200), length))
    go = lambda inner: flags + nbd_option(7, inner)
    cases += [go(struct.pack(">I", size) + b"a" * 5 + b"\0\0") for size in (0, 4, 6, 4096, 0xFFFFFFFF)]
    cases += [go(struct.pack(">I", 1) + b"a" + struct.pack(">H", 0xFFFF)), go(b"")]
    cases.append(flags + nbd_option(3, b"") * 1000)
    opened = go(struct.pack(">I", 6) + b"victim" + b"\0\0")
    for command in list(range(0, 12)) + [0xFFFF]:
        if command == 2:
            continue
        for offset, length in ((0, 0), (0, 0xFFFFFFFF), (1 << 63, 4096), ((1 << 64) - 1, 0xFFFFFFFF), (64 << 20, 512)):
            cases.append(opened + nbd_request(command, offset, length))
            cases.append(opened + nbd_request(command, offset, length, flags=0xFFFF) + b"w" * 1000)
    cases.append(opened + nbd_request(1, 0, 32 << 20) + b"w" * (1 << 20))
    cases.append(opened + nbd_request(0, 0, 4096)[:20])
    cases.append(opened + b"\0" * 28)
    cases += [opened + RANDOM.randbytes(RANDOM.randrange(1, 500)) for _ in range(50)]
    cases += [RANDOM.randbytes(RANDOM.randrange(1, 3000)) for _ in range(100)]
    return cases


def bombard(cases, alive, address):
    for number, case in enumerate(cases):
        exchange(address, case)
        if number % 50 == 49:
            alive(address)
    # Many at once that say nothing, or promise much and say nothing more.
    idle = []
    for number in range(200):
        sock = connect(address)
        if number % 2:
            sock.sendall(native_header(0x03, 1, 64 << 20) if alive is native_alive else
                         struct.pack(">I", 3) + nbd_option(7, b"", 16000))
        idle.append(sock)
    alive(address)
    for sock in idle:
        sock.close()
    alive(address)
    print(f"{address}: {len(cases)} broken streams and {len(idle)} silent connections; it still answers")


# ---- vanishing clients ----------------------------------------------------------------------------------------------

def vanish(addresses):
    for turn in range(300):
        sock = nbd_open(RANDOM.choice(addresses), "disk")
        length = RANDOM.choice([4096, 65536, 1 << 20, 4 << 20])
        offset = RANDOM.randrange(0, (64 << 20) - length) & ~4095
        match turn % 4:
            case 0:  # the payload ends in its middle
                sock.sendall(nbd_request(1, offset, length) + bytes([NEW]) * RANDOM.randrange(length))
            case 1:  # the whole write, and gone before the answer
                sock.sendall(nbd_request(1, offset, length) + bytes([NEW]) * length)
            case 2:  # many answers outstanding, nobody reads them
                for cookie in range(16):
                    sock.sendall(nbd_request(0, cookie * (4 << 20), 4 << 20, cookie=cookie))
            case 3:  # the header ends in its middle
                sock.sendall(nbd_request(1, offset, length)[:RANDOM.randrange(28)])
        if RANDOM.randrange(2):
            # An RST rather than a FIN, where there is such a thing.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    print("300 clients vanished")


def whole_blocks(uri):
    import nbd as libnbd
    client = libnbd.NBD()
    client.connect_uri(uri)
    counts = {OLD: 0, NEW: 0}
    for at in range(0, client.get_size(), 1 << 20):
        data = bytes(client.pread(1 << 20, at))
        for block in range(0, 1 << 20, 4096):
            part = data[block:block + 4096]
            if part != part[:1] * 4096 or part[0] not in counts:
                sys.exit(f"the block at {at + block} is neither old nor new")
            counts[part[0]] += 1
    print(f"{counts[OLD]} blocks are as before, {counts[NEW]} as written by clients that vanished")


what, *arguments = sys.argv[1:]
if what == "vanish":
    vanish(arguments)
elif what == "whole-blocks":
    whole_blocks(arguments[0])
else:
    for each in arguments:
        bombard({"native": native, "nbd": nbd}[what](each), {"native": native_alive, "nbd": nbd_alive}[what], each)
