#!/usr/bin/env python3
"""Plays QEMU 5.0 to a sheep, walk by walk, as the wire protocol tells them.

    old_qemu.py PORT DIR WALK...

What an export must show in the end is left as a file of its name in DIR. Ends with an error where an answer is not as it must be, or where a disk, a
snapshot or a machine's state holds something else than was written.
"""

import os
import sys

from old_qemu_driver import *

MIB = 1 << 20
OBJECT = 4 * MIB


def expect_refusal(result, deed, *args):
    try:
        deed(*args)
    except Refused as refused:
        assert refused.result == result, f"{refused}, expected {result:#x}"
        return
    sys.exit(f"{deed.__name__}{args} was not refused")


class Disk:
    """A drive, and what it must hold."""

    def __init__(self, sheep, name, size, **how):
        sheep.create(name, size, **how)
        self.drive = Drive(sheep, name)
        self.content = bytearray(self.drive.inode.size)

    def write(self, offset, data):
        self.drive.write(offset, data)
        if offset + len(data) > len(self.content):
            self.content.extend(bytes(offset + len(data) - len(self.content)))
        self.content[offset : offset + len(data)] = data

    def verify(self, drive=None, content=None):
        drive, content = drive or self.drive, self.content if content is None else content
        assert drive.inode.size == len(content), f"{drive.inode.size} bytes, not {len(content)}"
        step = 8 * MIB
        for at in range(0, len(content), step):
            found = drive.read(at, min(step, len(content) - at))
            assert found == content[at : at + step], f"{drive.name}: other bytes from {at} on"

    def frozen(self):
        return bytes(self.content)


def pattern(value, length):
    return bytes([value]) * length


def write_everywhere(disk, value):
    """New objects, old ones, a run over several, a part of a block, the last bytes."""
    disk.write(value * MIB // 2 // 4096 * 4096, pattern(value, 4096))
    disk.write(3 * OBJECT - 5000, pattern(value, 10000))
    disk.write(5 * OBJECT - MIB, pattern(value, 2 * OBJECT + 2 * MIB))
    disk.write(len(disk.content) - 512, pattern(value, 512))
    disk.drive.flush()


def keep(directory, export, content):
    with open(os.path.join(directory, export), "wb") as file:
        file.write(content)


def reopened(sheep, name, snapshot=None):
    drive = Drive(sheep, name, snapshot)
    drive.close()
    return Drive(sheep, name, snapshot)


# ---- the walks ------------------------------------------------------------------------------------------------------

# Of the original's answers one is not repeated: to the flush it says INVALID_PARMS, and QEMU never flushes again.
RECORDED = """
> NEW_VDI      00110100 00000000 00000000 00010000 00000004 00000000 00000000 00000016 00000000 00000000 00000000 00000000
<              00110000 01000000 00000000 00000000 00000000 00000000 0739a000 00000000 01160000 00000000 00000000 00000000
> LOCK_VDI     01120100 00000000 00000000 00020000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000
<              00120000 01000000 00000000 00000000 00000000 00000000 0739a000 00000000 01160000 00000000 00000000 00000000
> READ_OBJ     00020400 00000000 00000000 38124000 00000000 0739a080 00000000 00000000 00000000 00000000 00000000 00000000
<              00020000 01000000 00000000 38124000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000
> CREATE_OBJ   00010500 00000000 00000000 00100000 03000000 0739a000 00000000 00000000 01000000 00000000 00200000 00000000
<              00010000 01000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000
> WRITE_OBJ    00030500 00000000 01000000 04000000 00000000 0739a080 00000000 00000000 01000000 00000000 44120000 00000000
> FLUSH_VDI    00160400 00000000 02000000 00000000 00000000 0739a080 00000000 00000000 01000000 00000000 00000000 00000000
<              00160000 01000000 02000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000
> RELEASE_VDI  00130100 00000000 00000000 06000000 00000000 00000000 0739a000 00000000 00000000 00000000 00000000 00000000
> WRITE_OBJ    00030500 00000000 00000000 38120000 00000000 0739a080 00000000 00000000 01000000 00000000 00000000 00000000
> NEW_VDI      00110100 00000000 00000000 00010000 00000004 00000000 0739a000 01000016 01000000 00000000 00000000 00000000
<              00110000 01000000 00000000 00000000 00000000 00000000 0839a000 00000000 01160000 00000000 00000000 00000000
> CREATE_OBJ   00010700 00000000 00000000 00100000 03000000 0839a000 03000000 0739a000 01000000 00000000 00200000 00000000
"""


def recorded(sheep, directory):
    """The conversation recorded in front of the original, bit by bit. Needs one sheep, one copy, and no "alice"."""
    sheep.log = []
    sheep.create(b"alice", 64 * MIB)
    drive = Drive(sheep, b"alice")
    drive.write(3 * OBJECT + 8192, pattern(0x5A, 4096))
    drive.flush()
    drive.close()
    drive = Drive(sheep, b"alice")
    drive.snapshot(b"tag")
    drive.close()
    drive = Drive(sheep, b"alice")
    drive.write(3 * OBJECT + 8192, pattern(0x5B, 4096))
    said = iter(sheep.log)
    for line in RECORDED.strip().splitlines():
        direction, *words = line.split()
        if direction == ">":
            # What the driver says between them was not recorded.
            name, request = words[0], bytes.fromhex("".join(words[1:]))
            reply = next((reply for _, asked, reply in said if asked == request), None)
            assert reply, f"the driver did not say {line}"
            print(f"> {name:12} {request.hex(' ', 4)}\n< {'':12} {reply.hex(' ', 4)}")
        else:
            assert reply == bytes.fromhex("".join(words)), f"expected       {line}"
    sheep.log = None
    drive.close()
    content = bytearray(64 * MIB)
    content[3 * OBJECT + 8192 : 3 * OBJECT + 12288] = pattern(0x5A, 4096)
    keep(directory, "alice@tag", content)
    content[3 * OBJECT + 8192 : 3 * OBJECT + 12288] = pattern(0x5B, 4096)
    keep(directory, "alice", content)


def snapshots(sheep, directory):
    """qemu-img snapshot -c, -l, -a; opening by tag and by id; each snapshot keeps what it froze."""
    disk = Disk(sheep, b"snapshots", 48 * MIB)
    frozen = {}
    for number, tag in enumerate([b"one", b"two", b"three"], 1):
        write_everywhere(disk, number)
        disk.verify()
        frozen[tag] = disk.frozen()
        disk.drive.snapshot(tag)
        disk.verify()
    write_everywhere(disk, 9)
    assert [(i, tag) for i, tag, _ in disk.drive.snapshots()] == [(1, b"one"), (2, b"two"), (3, b"three")]
    disk.drive.close()
    for number, (tag, content) in enumerate(frozen.items(), 1):
        for snapshot in (tag, number):
            drive = Drive(sheep, b"snapshots", snapshot)
            assert drive.inode.is_snapshot and drive.inode.snap_id == number and drive.inode.tag == tag
            disk.verify(drive, content)
            drive.close()
    expect_refusal(NO_TAG, Drive, sheep, b"snapshots", b"four")
    expect_refusal(NO_TAG, Drive, sheep, b"snapshots", 17)
    expect_refusal(NO_VDI, Drive, sheep, b"nobody")
    disk.drive = Drive(sheep, b"snapshots")
    disk.verify()
    # To and fro; what was written meanwhile is gone, what was frozen is not.
    for tag in (b"two", b"three", b"one", 2):
        disk.drive.goto(tag)
        disk.content = bytearray(frozen[b"two" if tag == 2 else tag])
        disk.verify()
        write_everywhere(disk, 8)
        disk.verify()
        disk.verify(reopened(sheep, b"snapshots"))
    assert [(i, tag) for i, tag, _ in disk.drive.snapshots()] == [(1, b"one"), (2, b"two"), (3, b"three")]
    disk.drive.close()
    keep(directory, "snapshots", disk.content)
    for tag, content in frozen.items():
        keep(directory, f"snapshots@{tag.decode()}", content)


def branches(sheep, directory):
    """The first write to an opened snapshot makes a new head on top of it."""
    disk = Disk(sheep, b"branches", 32 * MIB)
    disk.write(0, pattern(1, 6 * MIB))
    frozen = disk.frozen()
    disk.drive.snapshot(b"base")
    disk.write(MIB, pattern(2, 8 * MIB))
    disk.drive.close()
    disk.drive, disk.content = Drive(sheep, b"branches", b"base"), bytearray(frozen)
    disk.verify()
    disk.write(5 * MIB, pattern(3, 1000))
    disk.verify()
    assert not disk.drive.inode.is_snapshot
    disk.drive.close()
    disk.verify(reopened(sheep, b"branches"))
    keep(directory, "branches", disk.content)
    keep(directory, "branches@base", frozen)


def machines(sheep, directory):
    """savevm and loadvm: the state belongs to the snapshot, its size stands in the inode, and the disk is as it was then."""
    disk = Disk(sheep, b"machines", 32 * MIB)
    saved = {}
    for number, tag in enumerate([b"booted", b"at work"], 1):
        disk.write(number * 3 * MIB, pattern(number, 2 * MIB))
        state = bytes((i * 7 + number) % 251 for i in range(64 << 10)) * 150 + b"end"
        # As it comes: in pieces that know nothing of objects.
        step = 1 << 20
        for at in range(0, len(state), step):
            disk.drive.save_state(at, state[at : at + step])
        disk.drive.snapshot(tag, len(state), number * 1000)
        saved[tag] = (state, disk.frozen())
        disk.write(20 * MIB, pattern(0x70 + number, 5 * MIB))
    assert disk.drive.snapshots() == [(i, tag, len(saved[tag][0])) for i, tag in enumerate(saved, 1)]
    for tag in (b"booted", b"at work", b"booted"):
        disk.drive.close()
        disk.drive = Drive(sheep, b"machines")
        disk.drive.goto(tag)
        state, content = saved[tag]
        disk.content = bytearray(content)
        assert disk.drive.load_state(0, len(state)) == state
        assert disk.drive.load_state(OBJECT - 1000, 3000) == state[OBJECT - 1000 : OBJECT + 2000]
        disk.verify()
        disk.write(12 * MIB, pattern(5, MIB))
    disk.drive.close()
    keep(directory, "machines", disk.content)
    keep(directory, "machines:2", saved[b"at work"][1])


def direct(sheep, directory):
    """cache=none: other flags, and no flush. preallocation=full: every object is read and written back."""
    sheep.create(b"direct", 18 * MIB, copies=2)
    drive = Drive(sheep, b"direct", flags=DIRECT)
    for at in range(0, 18 * MIB, OBJECT):
        drive.write(at, drive.read(at, min(OBJECT, 18 * MIB - at)))
    assert all(drive.inode.entry(index) == drive.inode.vid for index in range(5))
    drive.write(MIB, pattern(1, 6 * MIB))
    drive.flush()
    drive.close()
    content = bytes(MIB) + pattern(1, 6 * MIB) + bytes(11 * MIB)
    assert reopened(sheep, b"direct").read(0, 18 * MIB) == content
    keep(directory, "direct", content)


def clones(sheep, directory):
    """qemu-img create -b: on a snapshot, with the cluster's copies, while the base goes on, also with other copies than the base's."""
    base = Disk(sheep, b"clones", 32 * MIB, copies=1)
    write_everywhere(base, 1)
    frozen = base.frozen()
    base.drive.snapshot(b"golden")

    expect_refusal(INVALID_PARMS, sheep.create, b"of a head", 0, 0, (b"clones", None))
    # Somebody else might ask for it all the same: the head must not become read-only by that.
    expect_refusal(INVALID_PARMS, sheep.new_vdi, b"of a head", 32 * MIB, base.drive.inode.vid)
    base.write(0, pattern(2, 5 * MIB))
    made = []
    for name, size in ((b"clone-a", 0), (b"clone-b", 40 * MIB)):
        clone = Disk(sheep, name, size, base=(b"clones", b"golden"))
        assert clone.drive.inode.copies == sheep.cluster_default()[0] and base.drive.inode.copies == 1
        clone.content = bytearray(frozen) + bytearray(len(clone.content) - len(frozen))
        clone.verify()
        write_everywhere(clone, 0x20 + len(made))
        clone.drive.discard(6 * OBJECT, OBJECT)
        clone.content[6 * OBJECT : 7 * OBJECT] = bytes(OBJECT)
        clone.verify()
        clone.drive.close()
        clone.verify(reopened(sheep, name))
        keep(directory, name.decode(), clone.content)
        made.append(clone)
    base.verify()
    base.drive.close()
    base.verify(Drive(sheep, b"clones", b"golden"), frozen)
    keep(directory, "clones", base.content)
    keep(directory, "clones@golden", frozen)


def taken_underneath(sheep, directory):
    """Another process takes snapshots of a disk in use: READONLY, a look, and the same requests again."""
    disk = Disk(sheep, b"underneath", 32 * MIB)
    for number in range(1, 6):
        disk.write(0, pattern(number, 3 * OBJECT))
        other = Drive(sheep, b"underneath")
        other.snapshot(b"cut%d" % number)
        other.close()
        keep(directory, f"underneath@cut{number}", disk.content)
        vid = disk.drive.inode.vid
        disk.write(OBJECT - 4096, pattern(0x10 + number, 8192 + 4096 * number))
        disk.write(5 * OBJECT, pattern(number, 100))
        assert disk.drive.inode.vid != vid
        disk.verify()
    # What comes late: the object was made before the snapshot, its entry is sent after it. Then it is the snapshot's and the head's.
    drive, inode = disk.drive, disk.drive.inode
    late = pattern(0x77, 4096)
    request = header_of(CREATE_OBJ, CACHE | WRITE, len(late), obj(inode.vid << 32 | 7, 0, inode.copies, 0), drive.take_id())
    ((result, _),) = drive.exchange([(request, late)]).values()
    assert result == SUCCESS
    other = Drive(sheep, b"underneath")
    other.snapshot(b"late")
    other.close()
    inode.set_entry(7, inode.vid)
    drive.write_entries(7, 7)
    disk.content[7 * OBJECT : 7 * OBJECT + 4096] = late
    disk.verify(reopened(sheep, b"underneath"))
    keep(directory, "underneath@late", disk.content)
    drive.close()
    disk.drive = Drive(sheep, b"underneath")
    disk.write(7 * OBJECT + 100, pattern(0x78, 100))
    disk.verify()
    disk.drive.close()
    keep(directory, "underneath", disk.content)


def resizes(sheep, directory):
    """A header write that grows. What else a header from an old cache says, and a smaller size, changes nothing."""
    disk = Disk(sheep, b"resizes", 10 * MIB)
    disk.write(9 * MIB, pattern(1, MIB))
    stale = Drive(sheep, b"resizes")
    disk.drive.resize(21 * MIB)
    disk.content.extend(bytes(11 * MIB))
    disk.write(19 * MIB, pattern(2, 2 * MIB))
    disk.write(20 * MIB, pattern(3, 3 * MIB))
    assert len(disk.content) == 23 * MIB
    disk.verify(reopened(sheep, b"resizes"))
    disk.drive.snapshot(b"small")
    keep(directory, "resizes@small", disk.content)
    # A process that has seen neither writes its header to what has become a snapshot: the snapshot stays one, of its size.
    header, frozen = stale.header(), Drive(sheep, b"resizes", b"small").inode
    header[256:512] = padded(b"small")
    try:
        sheep.write_header(stale.inode.vid, header, stale.inode.copies, CACHE)
    except Refused:
        pass
    after = Drive(sheep, b"resizes", b"small").inode
    assert after.is_snapshot and after.data == frozen.data, "a snapshot has changed"
    # The same to a head: it stays of its size, and its own.
    for field, value in (("<Q", 520), ("<I", 556), ("<I", 560), ("<I", 564)):
        struct.pack_into(field, header, value, 1)
    before = Drive(sheep, b"resizes").inode
    header[256:512] = before.data[256:512]
    try:
        sheep.write_header(before.vid, header, before.copies, CACHE)
    except Refused:
        pass
    after = Drive(sheep, b"resizes").inode
    assert after.data == before.data, "an old header has changed more than it may"
    disk.drive.resize(30 * MIB)
    disk.content.extend(bytes(7 * MIB))
    disk.verify(reopened(sheep, b"resizes"))
    disk.drive.close()
    keep(directory, "resizes", disk.content)


def discards(sheep, directory):
    """Objects are discarded and made again at once, over and over; none of them is lost. Snapshots keep theirs."""
    disk = Disk(sheep, b"discards", 64 * MIB)
    disk.write(0, pattern(1, 16 * OBJECT))
    frozen = disk.frozen()
    disk.drive.snapshot(b"full")
    for number in range(120):
        index = number % 16
        disk.drive.discard(index * OBJECT, OBJECT)
        disk.content[index * OBJECT : (index + 1) * OBJECT] = bytes(OBJECT)
        disk.write(index * OBJECT + 4096 * (number % 7), pattern(number % 255 + 1, 4096))
    disk.verify()
    disk.drive.discard(3 * OBJECT - 100, 4 * OBJECT + 200)
    disk.content[3 * OBJECT : 7 * OBJECT] = bytes(4 * OBJECT)
    disk.verify()
    disk.drive.close()
    disk.verify(reopened(sheep, b"discards"))
    disk.verify(Drive(sheep, b"discards", b"full"), frozen)
    keep(directory, "discards", disk.content)
    keep(directory, "discards@full", frozen)


def reconnects(sheep, directory):
    """A connection breaks with requests under way; the driver sends them again, and what came of the first attempt does no harm."""
    disk = Disk(sheep, b"reconnects", 64 * MIB)
    drive = disk.drive
    for number in range(40):
        index, inode = number % 16, drive.inode
        data = pattern(number + 1, 8192)
        piece = (index, 4096 * (number // 16), 0, len(data))
        request_id = drive.take_id()
        request, payload = drive.write_request(request_id, piece, data)
        drive.data.send(request, payload)
        drive.reconnect()
        # The same request with the same id, then what follows: nothing of the dead connection may undo it.
        ((result, _),) = drive.exchange([drive.write_request(request_id, piece, data)]).values()
        assert result == SUCCESS
        if inode.entry(index) != inode.vid:
            inode.set_entry(index, inode.vid)
            drive.write_entries(index, index)
        start = index * OBJECT + piece[1]
        disk.content[start : start + len(data)] = data
        disk.write(index * OBJECT + MIB + 512 * number, pattern(0x80 + number, 512))
    disk.verify()
    drive.close()
    disk.verify(reopened(sheep, b"reconnects"))
    keep(directory, "reconnects", disk.content)


def deletes(sheep, directory):
    """qemu-img snapshot -d of 5.0: it empties the opened VDI, which is the client's mistake; no snapshot suffers from it."""
    disk = Disk(sheep, b"deletes", 150 * MIB, shift=20)
    for index in range(140):
        disk.write(index * MIB, pattern(index + 1, 512))
    frozen = disk.frozen()
    disk.drive.snapshot(b"kept")
    disk.drive.write(0, pattern(0xEE, MIB))
    disk.drive.snapshot(b"unwanted")
    disk.drive.delete_snapshot(b"unwanted")
    assert [(i, tag) for i, tag, _ in disk.drive.snapshots()] == [(1, b"kept")]
    disk.content = bytearray(len(disk.content))
    disk.verify()
    disk.verify(reopened(sheep, b"deletes"))
    expect_refusal(NO_TAG, Drive, sheep, b"deletes", b"unwanted")
    disk.verify(Drive(sheep, b"deletes", b"kept"), frozen)
    # Back to what it was.
    disk.drive.goto(b"kept")
    disk.content = bytearray(frozen)
    disk.verify()
    disk.drive.close()
    keep(directory, "deletes", disk.content)
    keep(directory, "deletes@kept", frozen)


class Library:
    """libsheepdog: it locks without a tag, reads the inode whole, and writes single entries and the bare tag."""

    def __init__(self, sheep, name):
        self.sheep, self.name = sheep, name
        vid = sheep.vid_of(header_of(LOCK_VDI, WRITE, 256, vdi()), padded(name))
        self.inode = Inode(sheep.read_inode(vid, WHOLE_INODE_BYTES, 0, 0))
        self.vid = vid

    def write(self, index, offset, data):
        vid, owner = self.vid, self.inode.entry(index)
        opcode = WRITE_OBJ if owner == vid else CREATE_OBJ
        flags = DIRECT | WRITE | (COW if owner not in (0, vid) else 0)
        variant = obj(vid << 32 | index, owner << 32 | index if flags & COW else 0, 0, offset)
        self.sheep.once(header_of(opcode, flags, len(data), variant), data)
        if owner != vid:
            self.inode.set_entry(index, vid)
            self.write_inode(HEADER_BYTES + 4 * index, self.inode.entries(index, index))

    def write_inode(self, at, data):
        self.sheep.once(header_of(WRITE_OBJ, DIRECT | WRITE, len(data), obj(inode_oid(self.vid), 0, 0, at)), data)

    def read(self, index, offset, length):
        variant = obj(self.inode.entry(index) << 32 | index, 0, 0, offset)
        return self.sheep.once(header_of(READ_OBJ, 0, length, variant))[1]

    def snapshot(self, tag):
        expect_refusal(NO_TAG, self.sheep.find, GET_VDI_INFO, self.name, tag)
        header = Inode(self.sheep.read_inode(self.vid, HEADER_BYTES, 0, 0))
        self.write_inode(256, padded(tag))
        self.sheep.new_vdi(self.name, header.size, self.vid, header.copies, header.policy, header.shift, 1)

    def release(self):
        self.sheep.once(header_of(RELEASE_VDI, 0, 0, vdi(base=self.vid)))

    def delete(self):
        """What belongs to the VDI is emptied in batches, then it goes by its name."""
        self.sheep.find(GET_VDI_INFO, self.name)
        self.sheep.once(header_of(DELETE_CACHE, WRITE, 256, vdi(), proto=0x0A), padded(self.name))
        inode = Inode(self.sheep.read_inode(self.vid, WHOLE_INODE_BYTES, 0, 0))
        for first in range(0, 512, DELETED_BATCH):
            if any(inode.entries(first, first + DELETED_BATCH - 1)):
                self.write_inode(HEADER_BYTES + 4 * first, bytes(4 * DELETED_BATCH))
        self.sheep.delete(self.name)


def library(sheep, directory):
    """libsheepdog: create, write, snapshot, clone, roll back and delete."""
    assert sheep.cluster_info()[18] == sheep.cluster_default()[0]
    sheep.new_vdi(b"library", 16 * MIB, shift=22)
    disk = Library(sheep, b"library")
    disk.write(1, 4096, pattern(1, 8192))
    disk.snapshot(b"first")
    disk.release()
    disk = Library(sheep, b"library")
    disk.write(1, 0, pattern(2, 8192))
    disk.write(2, 0, pattern(3, 4096))
    assert disk.read(1, 0, 16384) == pattern(2, 8192) + pattern(1, 4096) + bytes(4096)
    frozen = Inode(sheep.read_inode(sheep.find(GET_VDI_INFO, b"library", b"first"), INODE_BYTES, 0, 0))
    sheep.new_vdi(b"library-clone", frozen.size, frozen.vid, shift=22)
    clone = Library(sheep, b"library-clone")
    clone.write(1, 8192, pattern(4, 512))
    assert clone.read(1, 0, 16384) == bytes(4096) + pattern(1, 4096) + pattern(4, 512) + pattern(1, 3584) + bytes(4096)
    clone.delete()
    expect_refusal(NO_VDI, Library, sheep, b"library-clone")
    disk.delete()
    expect_refusal(NO_VDI, Library, sheep, b"library")
    sheep.new_vdi(b"library", frozen.size, frozen.vid, frozen.copies, shift=22)
    disk = Library(sheep, b"library")
    assert disk.read(1, 0, 16384) == bytes(4096) + pattern(1, 8192) + bytes(4096)
    assert disk.inode.entry(2) == 0
    content = bytes(OBJECT + 4096) + pattern(1, 8192) + bytes(11 * MIB + MIB - 12288)
    keep(directory, "library@first", content)
    keep(directory, "library", content)


def locks(sheep, directory):
    """In a cluster that enforces locks: one user of a head, none needed for snapshots, and the lock follows the head."""
    disk = Disk(sheep, b"locks", 16 * MIB)
    disk.write(0, pattern(1, MIB))
    expect_refusal(VDI_LOCKED, Drive, sheep, b"locks")
    disk.drive.snapshot(b"free")
    expect_refusal(VDI_LOCKED, Drive, sheep, b"locks")
    # The driver releases the new head, not what it had locked: the snapshot must not stay locked by that.
    first, second = Drive(sheep, b"locks", b"free"), Drive(sheep, b"locks", 1)
    disk.verify(first)
    sheep.create(b"locks-clone", 0, 0, (b"locks", b"free"))
    disk.write(MIB, pattern(2, MIB))
    disk.drive.goto(b"free")
    disk.content[MIB : 2 * MIB] = bytes(MIB)
    disk.verify()
    disk.drive.close()
    first.close()
    second.close()
    drive = Drive(sheep, b"locks")
    disk.verify(drive)
    drive.reconnect()
    drive.write(0, pattern(3, 100))
    drive.close()
    expect_refusal(NO_VDI, Drive, sheep, b"nobody")
    drive = Drive(sheep, b"locks")
    drive.close()


WALKS = [
    recorded, snapshots, branches, machines, direct, clones, taken_underneath, resizes, discards, reconnects, deletes, library, locks,
]


def main():
    port, directory, *names = sys.argv[1:]
    walks = {walk.__name__: walk for walk in WALKS}
    for name in names:
        print(f"{name}: {walks[name].__doc__}", flush=True)
        walks[name](Sheep(int(port)), directory)


main()
