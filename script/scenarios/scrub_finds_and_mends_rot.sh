#!/usr/bin/env bash
# Bytes on the disks of running sheep flip where nobody reads: in a working VDI and in a snapshot. Sheep find that by themselves, have it mended,
# and count it. A block that is bad on all disks is named by dog cluster health until it is written anew.
. "$(dirname "$0")/../lib.sh"
need_packages python3
scenario_with_sheep 0

choose_ports
for sheep in 0 1 2; do
    truncate -s 768M "$dir/disk$sheep"
    run sheep -c local "$dir/$sheep,$dir/disk$sheep" -z "$sheep" -p "$port$sheep"
done
wait_for 20 "three members" members_are 3
run dog cluster format --copies=3
wait_for 20 "a running cluster" cluster_runs
# Until it is asked for, nothing is to be found.
run dog cluster scrub disable
are_disabled() { [[ $(dog node scrub -r | grep -cE '^[0-2] [^ ]+ disabled [0-9]+ [0-9]+ [0-9]+ [0-9]+ (-|[0-9]+) 0 0 0 0 0 0 0$') == 3 ]]; }
wait_for 20 "no scrub anywhere" are_disabled

# content WORD BLOCKS: blocks that name themselves.
content() {
    /usr/bin/python3 -c 'import sys
for n in range(int(sys.argv[2])):
    sys.stdout.buffer.write(f"{sys.argv[1]} {n:08} ".encode().ljust(4096, b"."))' "$@"
}
# rot DISK WORD BLOCK: flips bits of a byte of that block on the disk of a sheep.
rot() {
    show rot "$@"
    /usr/bin/python3 - "$dir/disk$1" "$2 $(printf %08d "$3") " <<'PYTHON'
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
size = os.fstat(fd).st_size
with mmap.mmap(fd, size) as disk:
    at = disk.find(sys.argv[2].encode())
    assert at >= 0 and at % 4096 == 0, at
    disk[at + 2000] ^= 0xff
    disk.flush()
os.fsync(fd)
PYTHON
}
# counts SHEEP: blocks found, mended, still damaged, and lost.
counts() { dog node scrub -r | awk -v id="$1" '$1 == id { print $9, $10, $11, $12 }'; }
counts_are() { [[ $(counts "$1") == "$2" ]]; }
# Has every sheep come round since?
passes() { dog node scrub -r | awk '$3 == "asked-for" || $3 == "counting" { busy = 1 } $8 == "-" { busy = 1 } END { exit busy }'; }

run dog vdi create work 64M
run dog vdi create kept 64M
content work 4096 | dog vdi write work
content kept 4096 | dog vdi write kept
run dog vdi snapshot -s first kept
content newer 1024 | dog vdi write kept
content work 4096 >"$dir/work"
content kept 4096 >"$dir/kept"

chapter "Rot that nobody reads"
rot 1 work 1000
rot 1 work 3001
rot 2 kept 77
rot 0 kept 2000
run dog cluster scrub now
wait_for 60 "two blocks on sheep 1" counts_are 1 '2 2 0 0'
wait_for 60 "one block on sheep 2" counts_are 2 '1 1 0 0'
wait_for 60 "one block on sheep 0" counts_are 0 '1 1 0 0'
wait_for 60 "the end of the passes" passes
said() { grep -c 'does not match its checksum or cannot be read.*vdi: kept,.*block: 77,' "$dir/2/sheep.log"; }
[[ $(said) == 1 ]] || die "sheep 2 did not say once which block it was: $(grep -i checksum "$dir/2/sheep.log")"
dog node scrub
say "a sheep that rests tells of its last pass"
for i in 0 1 2; do expect 0 "^ +$i +127.* disabled +100\\.0% +[1-9][0-9.]* MB +[1-9][0-9.]* MB +20" dog node scrub; done
expect 0 '^ok$' dog cluster health
for name in work kept; do
    expect 0 "^finish check&repair $name\$" dog vdi check $name
    ! grep -q 'fixed' <<<"$output" || die "something was left to mend: $output"
done
cmp <(dog vdi read work 0 16M) "$dir/work" || die "the working VDI differs"
cmp <(dog vdi read -s first kept 0 16M) "$dir/kept" || die "the snapshot differs"

chapter "A block that is bad on every disk"
for sheep in 0 1 2; do rot $sheep work 2222; done
run dog cluster scrub now
wait_for 60 "a lost block" counts_are 1 '3 2 1 1'
wait_for 60 "a lost block" counts_are 2 '2 1 1 1'
wait_for 60 "a lost block" counts_are 0 '2 1 1 1'
expect 2 '^block [0-9]+ of object [0-9a-f]+ of VDI work is damaged on node 0 .*node 1 .*node 2 .*, and no copy of it is good$' dog cluster health
expect 0 'no copy is good$' dog node scrub
dd if="$dir/work" bs=4096 skip=2222 count=1 status=none | dog vdi write work $((2222 * 4096)) 4096
wait_for 90 "nothing damaged on sheep 1" counts_are 1 '3 3 0 0'
wait_for 90 "nothing damaged on sheep 2" counts_are 2 '2 2 0 0'
wait_for 90 "nothing damaged on sheep 0" counts_are 0 '2 2 0 0'
expect 0 '^ok$' dog cluster health
cmp <(dog vdi read work 0 16M) "$dir/work" || die "the working VDI differs"

chapter "At an operator's pace, for ever"
run dog cluster scrub rate 200M
expect 0 '^Scrub rate: 209715200 bytes' dog cluster scrub rate
run dog cluster scrub enable
rot 1 newer 512
wait_for 60 "a block of the next pass" counts_are 1 '4 4 0 0'
rot 1 newer 600
wait_for 60 "a block of a later one" counts_are 1 '5 5 0 0'
no_panics
