#!/usr/bin/env bash
# What changed since a snapshot is a metadata context of a VDI, of a later snapshot and of a clone. nbdinfo and qemu-img read it as a
# dirty bitmap; every block that differs, byte for byte, is in it, and not much else.
. "$(dirname "$0")/../lib.sh"
need_packages libnbd-bin python3 python3-libnbd qemu-utils qemu-block-extra
scenario_with_sheep 3

io() {
    local words=() command
    for command in "${@:2}"; do words+=(-c "$command"); done
    show qemu-io -f raw -d unmap "${words[@]}" "$(nbd_uri "$1")"
    output=$(qemu-io -f raw -d unmap "${words[@]}" "$(nbd_uri "$1")" 2>&1) || die "$output"
}
content() { [[ -f $dir/$1 ]] || run nbdcopy "$(nbd_uri "$1" 1)" "$dir/$1"; }
# compare EXPORT SNAPSHOT CONTEXT DIRTY_MAX: of each sheep, with both programs.
compare() {
    local sheep uri check=("$dir/$2" "$dir/$1" "$4")
    content "$1"
    content "$2"
    for sheep in 0 1 2; do
        uri=$(nbd_uri "$1" "$sheep")
        show nbdinfo --json "--map=qemu:dirty-bitmap:$3" "$uri"
        nbdinfo --json "--map=qemu:dirty-bitmap:$3" "$uri" >"$dir/map" || die "nbdinfo failed"
        python3 "$root/script/dirty_map.py" "$dir/map" "${check[@]}" || die "by nbdinfo"
    done
    uri=driver=nbd,server.type=unix,server.path=$dir/0/nbd.sock,export=$1,x-dirty-bitmap=qemu:dirty-bitmap:$3
    show qemu-img map --output=json --image-opts "$uri"
    qemu-img map --output=json --image-opts "$uri" >"$dir/map" || die "qemu-img failed"
    python3 "$root/script/dirty_map.py" "$dir/map" "${check[@]}" || die "by qemu-img"
}
changed() { rm -f "$dir/disk"; }
MiB=$((1 << 20))

run dog vdi create disk 96M
io disk "write -P 0x11 0 16M" "write -P 0x12 30M 4M" "write -P 0x13 47M 64k"
run dog vdi snapshot -s one disk
compare disk disk@one one 0
say "small and large, aligned and not, over borders of objects, in data and in holes, and zeros of each kind"
io disk "write -P 0x21 1M 4k" "write -P 0x21 4190208 8k" "write -P 0x21 6000000 1000" "write -P 0x22 9M 2M" \
    "discard 12M 4M" "write -z 31M 64k" "write -z -u 32M 128k" "write -P 0x23 70M 64k" "write -P 0x24 80M 5M" flush
changed
compare disk disk@one one $((12 * MiB))
run dog vdi snapshot -s two disk
io disk "write -P 0x31 0 4k" "write -P 0x31 81M 4k" "write -P 0x31 60M 1" flush
changed
compare disk disk@two two $((MiB / 4))
compare disk disk@two 2 $((MiB / 4))
compare disk disk@one one $((12 * MiB))
compare disk@two disk@one one $((12 * MiB))

say "a VDI that has grown, one that was cloned, and one that was rolled back"
run dog vdi resize disk 100M
io disk "write -P 0x41 98M 4k" flush
changed
compare disk disk@one one $((12 * MiB))
run dog vdi clone -s one disk copy
io copy "write -P 0x51 2M 4k" "write -P 0x51 64M 4k" flush
compare copy disk@one disk@one $((MiB / 4))
run dog vdi rollback -f -s two disk
io disk "write -P 0x61 3M 4k" flush
changed
compare disk disk@two two $((MiB / 4))
compare disk disk@one one $((12 * MiB))

say "contexts are listed, several can be had at once, and those of no snapshot cannot"
expect 0 'qemu:dirty-bitmap:two' nbdinfo "$(nbd_uri disk)"
grep -q 'qemu:dirty-bitmap:one' <<<"$output" || die "$output"
expect 0 'qemu:dirty-bitmap:one' nbdinfo "$(nbd_uri disk@two)"
! grep -q 'qemu:dirty-bitmap:two' <<<"$output" || die "$output"
expect 1 'dirty-bitmap:three' nbdinfo --map=qemu:dirty-bitmap:three "$(nbd_uri disk)"
cat >"$dir/several.py" <<'PYTHON'
import nbd, sys

names = ["base:allocation", "qemu:dirty-bitmap:one", "qemu:dirty-bitmap:two"]
handle = nbd.NBD()
for name in names:
    handle.add_meta_context(name)
handle.connect_uri(sys.argv[1])
found = {}
handle.block_status(4096, 3 << 20, lambda name, at, extents, error: found.setdefault(name, extents))
assert sorted(found) == names, found
states = {name: extents[1] for name, extents in found.items()}
assert states == {names[0]: 0, names[1]: 1, names[2]: 1}, found
PYTHON
run /usr/bin/python3 "$dir/several.py" "$(nbd_uri disk)"
say "the same after everything has come home on the disks and the sheep have started anew; finer than a slot it need not be now"
mapfile -t all < <(all_sheep_pids)
run dog cluster shutdown
for pid in "${all[@]}"; do wait_for 20 "the end of sheep $pid" ended "$pid"; done
for i in 0 1 2; do start_sheep "$i"; done
wait_for 30 "a running cluster" sees 0 3
compare disk disk@two two $((MiB / 2))
compare disk disk@one one $((12 * MiB + MiB / 2))
no_panics
