#!/usr/bin/env bash
# A bit flips in the part of a journal that the sheep would replay at its next start. Scrub finds it, and then the sheep can be killed and comes back with all
# it has. If the sheep dies before, it refuses its disk, leaves it as it is and says what to do: that works as said, and where that disk has
# the last copy, dog cluster health says so.
. "$(dirname "$0")/../lib.sh"
need_packages python3
scenario_with_sheep 3 2
run dog cluster scrub disable

# write_small WORD: four blocks in each object, which go through the journal. What the VDI holds then is in $dir/content.
write_small() {
    local object
    for ((object = 0; object < 16; object++)); do
        /usr/bin/python3 -c 'import sys; sys.stdout.write("".join(f"{sys.argv[1]} {n} ".ljust(4096, ".") for n in range(4)))' "$1 $object" >"$dir/piece"
        dog vdi write work $((object << 22)) 16384 <"$dir/piece"
        dd if="$dir/piece" of="$dir/content" bs=4096 seek=$((object << 10)) conv=notrunc status=none
    done
    truncate -s 64M "$dir/content"
}
# flip SHEEP: a bit of the newest record for which a later one vouches. Prints where. The sheep has no part in it. flip SHEEP WHERE: that bit.
flip() {
    /usr/bin/python3 - "$dir/$1/objects" "${2:-}" <<'PYTHON'
import mmap, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR)
with mmap.mmap(fd, 32 << 20) as disk:
    blocks = struct.unpack_from("<Q", disk, 24)[0]
    heads = [at for at in range(16 * 4096, (16 + blocks) * 4096, 4096) if disk[at:at + 4] == b"SHRJ"]
    if sys.argv[2]:
        at = int(sys.argv[2])
    else:
        seq, durable = ({at: struct.unpack_from("<Q", disk, at + offset)[0] for at in heads} for offset in (16, 40))
        vouched = max(durable.values())
        at = next(at for at in heads if seq[at] == vouched) + 100
    disk[at] ^= 4
    disk.flush()
os.fsync(fd)
print(at)
PYTHON
}
records_are() { [[ $(dog node scrub -r -p "$2" | awk -v id="$1" '$1 == id { print $15 }') == "$3" ]]; }
health_is() { [[ $(dog cluster health -p "$1" 2>/dev/null | head -1) == "$2" ]]; }
same() { cmp <(dog vdi read -p "$1" work) "$dir/content" || die "the VDI differs"; }

run dog vdi create work 64M

chapter "Scrub finds it: the next start does not meet it"
write_small first
flip 1 >/dev/null
run dog cluster scrub now
wait_for 60 "a damaged record on sheep 1" records_are 1 "${port}0" 1
expect 0 '^node 1: a record of the journal was damaged; nothing needs it any more$' dog node scrub
grep -q 'ERROR.*a record of the journal does not match its checksum' "$dir/1/sheep.log" || die "its log says nothing of it"
kill_sheep 1
start_sheep 1
wait_for 30 "a healthy cluster" health_is "${port}0" ok
same "${port}1"

chapter "It dies before: the disk is refused and left as it is"
write_small second
flip 1 >/dev/null
kill_sheep 1
before=$(sha256sum <"$dir/1/objects")
expect 1 "record [0-9]+ of the journal is damaged" sheep -c local "$dir/1" -z 1 -p "${port}1"
for line in "^cannot use disk $dir/1/objects: record" '^It is left as it is' '^ +dog cluster health -p PORT$' "^ +mv $dir/1 $dir/1.damaged\$"; do
    grep -qE "$line" <<<"$output" || die "it does not say '$line', but: $output"
done
say "$output"
[[ $(sha256sum <"$dir/1/objects") == "$before" ]] || die "the refused disk was written to"
wait_for 20 "a cluster that serves all" health_is "${port}0" degraded
! dog cluster health | grep -qE 'neither read nor written|take no writes' || die "something waits for it"
same "${port}0"

say "as it said"
run mv "$dir/1" "$dir/1.damaged"
start_sheep 1
wait_for 60 "a healthy cluster" health_is "${port}0" ok
same "${port}1"
[[ $(sha256sum <"$dir/1.damaged/objects") == "$before" ]] || die "what was put aside was written to"

chapter "It has the last copy of something: it is waited for, and what was kept is not lost"
kill_sheep 0
wait_for 20 "a cluster of two" health_is "${port}2" degraded
export SHEEPDOG_DOG_PORT=${port}2
write_small third
where=$(flip 1)
kill_sheep 1
expect 1 "record [0-9]+ of the journal is damaged" sheep -c local "$dir/1" -z 1 -p "${port}1"
start_sheep 0
wait_for 20 "a cluster that waits" health_is "${port}0" waiting
expect 2 "start again: 127.0.0.1:${port}1; if they are gone for good: dog cluster recover force" dog cluster health -p "${port}0"
flip 1 "$where" >/dev/null
start_sheep 1
wait_for 60 "a healthy cluster" health_is "${port}0" ok
same "${port}0"
same "${port}2"
no_panics
