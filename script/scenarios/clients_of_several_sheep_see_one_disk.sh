#!/usr/bin/env bash
# A VDI is opened through three sheep at once: what is written through one is read through the others at once, and
# neighbouring writes through different sheep into the same 4 KiB block leave each other alone.
. "$(dirname "$0")/../lib.sh"
need_packages qemu-utils qemu-block-extra python3 python3-libnbd
scenario_with_sheep 3

run dog vdi create shared 64M
run timeout 120 /usr/bin/python3 - "$(nbd_uri shared 0)" "$(nbd_uri shared 1)" "$(nbd_uri shared 2)" <<'PYTHON'
import nbd, random, sys
clients = []
for uri in sys.argv[1:]:
    client = nbd.NBD()
    client.connect_uri(uri)
    clients.append(client)
model = bytearray(64 << 20)
rand = random.Random(7)
for turn in range(2000):
    offset = rand.randrange(0, 64 << 20) & ~511 if turn % 3 else rand.randrange(0, 64) * 512
    length = min(rand.choice([512, 1024, 4096, 5120, 65536]), (64 << 20) - offset)
    writer, reader = rand.sample(clients, 2)
    match rand.randrange(5):
        case 0: writer.zero(length, offset); model[offset:offset + length] = bytes(length)
        case 1: writer.trim(length, offset); model[offset:offset + length] = bytes(reader.pread(length, offset))
        case _: data = rand.randbytes(length); writer.pwrite(data, offset); model[offset:offset + length] = data
    at = max(0, min(offset - 4096, (64 << 20) - 16384))
    assert reader.pread(16384, at) == model[at:at + 16384], f"turn {turn}: another client reads something else near {offset}"
for client in clients:
    for at in range(0, 64 << 20, 1 << 20):
        assert client.pread(1 << 20, at) == model[at:at + (1 << 20)], f"MiB {at >> 20}"
print("2000 writes through three sheep, each read back through another")
PYTHON
no_panics
