"""QEMU 5.0's block driver for Sheepdog, as far as a sheep can tell: the same messages in the same order.

Written from the protocol alone. A `Drive` is one process's use of a VDI: it keeps the inode it has read, addresses objects itself, and believes in
its cache, with the mistakes that this leads to. Every reply is checked: what it echoes, its length, and that nothing is in it that QEMU would
stumble over.
"""

import socket
import struct

CREATE_OBJ, READ_OBJ, WRITE_OBJ = range(1, 4)
NEW_VDI, LOCK_VDI, RELEASE_VDI, GET_VDI_INFO, READ_VDIS, FLUSH_VDI, DEL_VDI, GET_CLUSTER_DEFAULT = range(0x11, 0x19)
DELETE_CACHE, CLUSTER_INFO = 0xB0, 0xBE
NAMES = {number: name for name, number in list(globals().items()) if isinstance(number, int)}
WRITE, COW, CACHE, DIRECT = 1, 2, 4, 8
SUCCESS, NO_OBJ, VDI_EXIST, INVALID_PARMS, VDI_LOCKED, NO_VDI, NO_TAG, READONLY = 0, 2, 4, 5, 7, 8, 0xE, 0x1A

HEADER_BYTES = 4664
INODE_BYTES = 4198968
WHOLE_INODE_BYTES = 12587576
CLUSTER_INFO_BYTES = 491568
BITMAP_BYTES = 2097152
PROBED_MAX = 1024
DELETED_BATCH = 128
ENTRY = struct.Struct("<I")


def fnv(name):
    value = 0xCBF29CE484222325
    for byte in name:
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    return value & 0xFFFFFF


def padded(text):
    return text.ljust(256, b"\0")


def inode_oid(vid):
    return 1 << 63 | vid << 32


class Refused(Exception):
    """The sheep has answered with another result than success."""

    def __init__(self, what, result):
        super().__init__(f"{what} was answered with {result:#x}")
        self.result = result


class Link:
    """One connection. `log`, if there is one, gets (name, request header, reply header)."""

    def __init__(self, port, log=None):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.log = log

    def close(self):
        self.socket.close()

    def send(self, header, payload=b""):
        # In two pieces, as QEMU sends them.
        self.socket.sendall(header)
        if payload:
            self.socket.sendall(payload)

    def receive(self, count):
        parts = []
        while count:
            part = self.socket.recv(min(count, 1 << 20))
            if not part:
                raise ConnectionError("the sheep has closed the connection")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def reply(self):
        header = self.receive(48)
        return header, self.receive(ENTRY.unpack_from(header, 12)[0])


def header_of(opcode, flags, length, variant, request_id=0, proto=0):
    return struct.pack("<BBHIII", proto, opcode, flags, 0, request_id, length) + variant.ljust(32, b"\0")


def obj(oid, cow_oid=0, copies=0, offset=0):
    return struct.pack("<QQB7xQ", oid, cow_oid, copies, offset)


def vdi(size=0, base=0, copies=0, policy=0, shift=0, snapid=0, lock_type=0):
    return struct.pack("<QIBBBBII", size, base, copies, policy, 0, shift, snapid, lock_type)


def check(request, reply, data):
    """What every reply owes to its request. Returns the result."""
    opcode, flags, request_id, length = request[1], *struct.unpack_from("<H4xII", request, 2)
    assert reply[0] == 0 and reply[1] == opcode and reply[2:4] == b"\0\0", reply.hex(" ", 4)
    epoch, got_id, _, result = struct.unpack_from("<IIII", reply, 4)
    assert epoch > 0 and got_id == request_id, reply.hex(" ", 4)
    wanted = length if result == SUCCESS and not flags & WRITE and opcode != FLUSH_VDI else 0
    assert len(data) == wanted, f"{NAMES[opcode]}: {len(data)} bytes came, {wanted} were due"
    if opcode in (CREATE_OBJ, READ_OBJ, WRITE_OBJ, FLUSH_VDI, RELEASE_VDI):
        assert not any(reply[20:]), reply.hex(" ", 4)
    return result


class Sheep:
    """Control operations: each on a connection of its own, closed after it."""

    def __init__(self, port, log=None):
        self.port = port
        self.log = log

    def link(self):
        return Link(self.port)

    def note(self, request, reply):
        if self.log is not None:
            self.log.append((NAMES[request[1]], request, reply))

    def once(self, request, payload=b""):
        link = self.link()
        link.send(request, payload)
        reply, data = link.reply()
        link.close()
        self.note(request, reply)
        result = check(request, reply, data)
        if result != SUCCESS:
            raise Refused(NAMES[request[1]], result)
        return reply, data

    def vid_of(self, request, payload):
        reply, _ = self.once(request, payload)
        return ENTRY.unpack_from(reply, 24)[0]

    def read_inode(self, vid, length, copies, flags):
        return self.once(header_of(READ_OBJ, flags, length, obj(inode_oid(vid), 0, copies)))[1]

    def write_header(self, vid, header, copies, flags):
        assert len(header) == HEADER_BYTES
        self.once(header_of(WRITE_OBJ, flags | WRITE, len(header), obj(inode_oid(vid), 0, copies)), bytes(header))

    def new_vdi(self, name, size, base=0, copies=0, policy=0, shift=0, snapid=0):
        variant = vdi(size, base, copies, policy, shift, snapid)
        return self.vid_of(header_of(NEW_VDI, WRITE, 256, variant), padded(name))

    def cluster_default(self):
        reply, _ = self.once(header_of(GET_CLUSTER_DEFAULT, 0, 0, b"", proto=1))
        return reply[20], reply[21], reply[22]

    def find(self, opcode, name, tag=b"", snapid=0, flags=WRITE):
        request = header_of(opcode, flags, 512, vdi(snapid=snapid), proto=1)
        return self.vid_of(request, padded(name) + padded(tag))

    def delete(self, name):
        """Meant for the head: the name alone, whatever the base says."""
        return self.vid_of(header_of(DEL_VDI, WRITE, 256, vdi()), padded(name))

    def cluster_info(self):
        return self.once(header_of(CLUSTER_INFO, 0, CLUSTER_INFO_BYTES, b"", proto=0x0A))[1]

    def create(self, name, size, copies=0, base=None, shift=None):
        """qemu-img create. `base`: name and snapshot of a backing file, which is opened twice. `shift`: of object_size=, if given."""
        base_vid = 0
        for _ in range(2 if base else 0):
            backing = Drive(self, base[0], base[1])
            if not backing.inode.is_snapshot:
                backing.close()
                raise Refused("a working VDI as backing file", INVALID_PARMS)
            size, base_vid = size or backing.inode.size, backing.inode.vid
            backing.close()
        if shift is None:
            shift = self.cluster_default()[2]
        return self.new_vdi(name, size, base_vid, copies, 0, shift, 0)


class Inode:
    """A copy of an inode that may be out of date."""

    def __init__(self, data):
        self.data = bytearray(data)

    def field(self, layout, at):
        return struct.unpack_from(layout, self.data, at)[0]

    name = property(lambda self: bytes(self.data[:256]).rstrip(b"\0"))
    tag = property(lambda self: bytes(self.data[256:512]).rstrip(b"\0"))
    is_snapshot = property(lambda self: self.field("<Q", 520) != 0)
    size = property(lambda self: self.field("<Q", 536))
    vm_state_size = property(lambda self: self.field("<Q", 544))
    policy = property(lambda self: self.data[552])
    copies = property(lambda self: self.data[554])
    shift = property(lambda self: self.data[555])
    snap_id = property(lambda self: self.field("<I", 556))
    vid = property(lambda self: self.field("<I", 560))
    parent = property(lambda self: self.field("<I", 564))

    def entry(self, index):
        return self.field("<I", HEADER_BYTES + 4 * index)

    def set_entry(self, index, vid):
        ENTRY.pack_into(self.data, HEADER_BYTES + 4 * index, vid)

    def entries(self, first, last):
        return bytes(self.data[HEADER_BYTES + 4 * first : HEADER_BYTES + 4 * (last + 1)])


def selector(snapshot):
    """A fragment that is a number is a snapshot id, any other a tag."""
    if snapshot is None:
        return b"", 0
    return (b"", int(snapshot)) if str(snapshot).isdigit() else (snapshot, 0)


class Drive:
    def __init__(self, sheep, name, snapshot=None, flags=CACHE):
        self.sheep, self.name, self.flags = sheep, name, flags
        self.data = sheep.link()
        self.next_id = 0
        tag, snapid = selector(snapshot)
        vid = sheep.find(LOCK_VDI, name, tag, snapid)
        self.inode = Inode(sheep.read_inode(vid, INODE_BYTES, 0, flags))
        assert self.inode.vid == vid and self.inode.name == name, "the inode is another one's"

    def close(self):
        self.data.close()
        name = self.name + b"\0"
        self.sheep.once(header_of(RELEASE_VDI, WRITE, len(name), vdi(base=self.inode.vid)), name)

    # ---- the data connection ----------------------------------------------------------------------------------------

    def exchange(self, requests):
        """Sends all at once; the replies may come in any order. The results, and what was read, by id."""
        for request, payload in requests:
            self.data.send(request, payload)
        sent = {ENTRY.unpack_from(request, 8)[0]: request for request, _ in requests}
        answers = {}
        while sent:
            reply, data = self.data.reply()
            request = sent.pop(ENTRY.unpack_from(reply, 8)[0])
            self.sheep.note(request, reply)
            answers[ENTRY.unpack_from(request, 8)[0]] = (check(request, reply, data), data)
        return answers

    def take_id(self):
        self.next_id += 1
        return self.next_id - 1

    def one(self, opcode, flags, length, variant, payload=b""):
        request = header_of(opcode, flags, length, variant, self.take_id())
        ((result, data),) = self.exchange([(request, payload)]).values()
        if result != SUCCESS:
            raise Refused(NAMES[opcode], result)
        return data

    def pieces(self, offset, length):
        """Index, offset in the object, place in the request, length."""
        at, object_bytes = 0, 1 << self.inode.shift
        while at < length:
            index, within = divmod(offset + at, object_bytes)
            count = min(object_bytes - within, length - at)
            yield index, within, at, count
            at += count

    def read(self, offset, length):
        out, requests, places = bytearray(length), [], {}
        for index, within, at, count in self.pieces(offset, length):
            owner = self.inode.entry(index)
            if owner:
                request_id = self.take_id()
                variant = obj(owner << 32 | index, 0, self.inode.copies, within)
                requests.append((header_of(READ_OBJ, self.flags, count, variant, request_id), b""))
                places[request_id] = at
        for request_id, (result, data) in self.exchange(requests).items():
            if result != SUCCESS:
                raise Refused("READ_OBJ", result)
            out[places[request_id] : places[request_id] + len(data)] = data
        return bytes(out)

    def write(self, offset, data):
        if self.inode.is_snapshot:
            self.branch(self.inode.vid)
        if offset + len(data) > self.inode.size:
            self.resize(offset + len(data))
        waiting = {self.take_id(): piece for piece in self.pieces(offset, len(data))}
        created = []
        for _ in range(10):
            requests = [self.write_request(request_id, piece, data) for request_id, piece in waiting.items()]
            answers = self.exchange(requests)
            for request_id, (result, _) in answers.items():
                index, _, _, _ = waiting[request_id]
                if result == SUCCESS:
                    if self.inode.entry(index) != self.inode.vid:
                        created.append(index)
                    del waiting[request_id]
                elif result != READONLY:
                    raise Refused("a write", result)
            for index in created:
                self.inode.set_entry(index, self.inode.vid)
            if not waiting:
                break
            # Somebody has taken a snapshot. The same requests follow, with the same ids.
            self.reload()
        assert not waiting, "a working VDI is called read-only for ever"
        if created:
            self.write_entries(min(created), max(created))

    def write_request(self, request_id, piece, data):
        index, within, at, count = piece
        vid, owner = self.inode.vid, self.inode.entry(index)
        opcode, flags, cow_oid = WRITE_OBJ, self.flags | WRITE, 0
        if owner != vid:
            opcode = CREATE_OBJ
            if owner:
                flags, cow_oid = flags | COW, owner << 32 | index
        variant = obj(vid << 32 | index, cow_oid, self.inode.copies, within)
        return header_of(opcode, flags, count, variant, request_id), data[at : at + count]

    def write_entries(self, first, last):
        payload = self.inode.entries(first, last)
        variant = obj(inode_oid(self.inode.vid), 0, self.inode.copies, HEADER_BYTES + 4 * first)
        self.one(WRITE_OBJ, self.flags | WRITE, len(payload), variant, payload)

    def flush(self):
        if self.flags & CACHE:
            self.one(FLUSH_VDI, self.flags, 0, obj(inode_oid(self.inode.vid), 0, self.inode.copies))

    def discard(self, offset, length):
        """Whole objects that are there; nobody waits between them."""
        object_bytes, requests = 1 << self.inode.shift, []
        for index in range(-(-offset // object_bytes), (offset + length) // object_bytes):
            if self.inode.entry(index):
                self.inode.set_entry(index, 0)
                variant = obj(inode_oid(self.inode.vid), 0, self.inode.copies, HEADER_BYTES + 4 * index)
                requests.append((header_of(WRITE_OBJ, self.flags | WRITE, 4, variant, self.take_id()), bytes(4)))
        for result, _ in self.exchange(requests).values():
            if result != SUCCESS:
                raise Refused("a discard", result)

    def reconnect(self):
        """The lock is not taken again."""
        self.data.close()
        self.data = self.sheep.link()

    # ---- the inode --------------------------------------------------------------------------------------------------

    def header(self):
        return bytearray(self.inode.data[:HEADER_BYTES])

    def take_header(self, header):
        """The table stays as it was, so what was the VDI's own now looks like somebody else's."""
        self.inode.data[:HEADER_BYTES] = header

    def reload(self):
        vid = self.sheep.find(GET_VDI_INFO, self.name)
        header = self.sheep.read_inode(vid, HEADER_BYTES, self.inode.copies, self.flags)
        if vid != self.inode.vid:
            self.take_header(header)

    def resize(self, size):
        header = self.header()
        struct.pack_into("<Q", header, 536, size)
        self.sheep.write_header(self.inode.vid, header, self.inode.copies, self.flags)
        self.take_header(header)

    # ---- snapshots --------------------------------------------------------------------------------------------------

    def snapshot(self, tag, vm_state_size=0, vm_clock=0):
        header = self.header()
        header[256:512] = padded(tag)
        struct.pack_into("<Q", header, 528, vm_clock)
        struct.pack_into("<Q", header, 544, vm_state_size)
        inode = self.inode
        self.sheep.write_header(inode.vid, header, inode.copies, self.flags)
        head = self.sheep.new_vdi(self.name, inode.size, inode.vid, inode.copies, inode.policy, inode.shift, 1)
        self.take_header(self.sheep.read_inode(head, HEADER_BYTES, inode.copies, self.flags))

    def snapshots(self):
        """Upward from the name's hash until a vid is free; which of them are snapshots of the name."""
        bitmap = self.sheep.once(header_of(READ_VDIS, 0, BITMAP_BYTES, b""))[1]
        found, vid = [], fnv(self.name)
        for _ in range(PROBED_MAX):
            if not bitmap[vid // 8] & 1 << vid % 8:
                break
            try:
                header = Inode(self.sheep.read_inode(vid, HEADER_BYTES, 0, self.flags))
                if header.name == self.name and header.is_snapshot:
                    found.append((header.snap_id, header.tag, header.vm_state_size))
            except Refused:
                pass
            vid = (vid + 1) % (1 << 24)
        return found

    def goto(self, snapshot):
        tag, snapid = selector(snapshot)
        vid = self.sheep.find(GET_VDI_INFO, self.name, tag, snapid)
        header = Inode(self.sheep.read_inode(vid, HEADER_BYTES, self.inode.copies, self.flags))
        assert header.is_snapshot
        self.branch(vid, header)

    def branch(self, snapshot, header=None):
        """Replaces the head by a new one on top of the snapshot."""
        header = header or self.inode
        snapid = 0
        try:
            self.sheep.delete(self.name)
        except Refused as refused:
            snapid = 0 if refused.result == NO_VDI else 1
        vid = self.sheep.new_vdi(self.name, header.size, snapshot, header.copies, header.policy, header.shift, snapid)
        self.inode = Inode(self.sheep.read_inode(vid, INODE_BYTES, header.copies, self.flags))

    def delete_snapshot(self, snapshot):
        """As 5.0 does it: first the table of the opened VDI is emptied, then the snapshot is deleted."""
        inode = self.inode
        used = [index for index in range(inode.size + (1 << inode.shift) - 1 >> inode.shift) if inode.entry(index)]
        while used:
            batch, used = used[:DELETED_BATCH], used[DELETED_BATCH:]
            for index in batch:
                inode.set_entry(index, 0)
            self.write_entries(batch[0], batch[-1])
        tag, snapid = selector(snapshot)
        self.sheep.find(LOCK_VDI, self.name, tag, snapid)
        self.sheep.vid_of(header_of(DEL_VDI, WRITE, 512, vdi(snapid=snapid)), padded(self.name) + padded(tag))

    # ---- the machine's state ----------------------------------------------------------------------------------------

    def save_state(self, offset, data):
        """To the working VDI, which is about to become the snapshot."""
        for index, within, at, count in self.pieces(offset, len(data)):
            variant = obj(1 << 62 | self.inode.vid << 32 | index, 0, self.inode.copies, within)
            opcode = WRITE_OBJ if within else CREATE_OBJ
            self.sheep.once(header_of(opcode, self.flags | WRITE, count, variant), data[at : at + count])

    def load_state(self, offset, length):
        """From the parent, which is the snapshot that was gone to."""
        out = b""
        for index, within, _, count in self.pieces(offset, length):
            variant = obj(1 << 62 | self.inode.parent << 32 | index, 0, self.inode.copies, within)
            out += self.sheep.once(header_of(READ_OBJ, self.flags, count, variant))[1]
        return out
