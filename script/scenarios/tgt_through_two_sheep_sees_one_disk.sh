#!/usr/bin/env bash
# Two iSCSI targets serve one VDI, each through a sheep of its own. What a client of one has written, clients of the other
# read at once: in blocks that were there, in holes that both have read before, across the border of the two, and after
# NBD has discarded them. In the end both targets and NBD show the same bytes.
. "$(dirname "$0")/../lib.sh"
((EUID == 0)) || skip "tgtd must be root"
need_packages tgt qemu-utils qemu-block-extra libnbd-bin
scenario_with_sheep 3

# Anew, with locks that count.
run dog cluster format --force --lock --copies=3
wait_for 20 "a running cluster" cluster_runs
run dog vdi create disk 256M

target=iqn.2026-01.test:sheep
open_disk() {
    run tgtadm --lld iscsi --mode logicalunit --op new --tid 1 --lun 1 --bstype sheepdog --backing-store "tcp:127.0.0.1:$port$1:disk"
}
# start_target N PORT: a tgtd that serves the VDI through the sheep N.
start_target() {
    # It reads the number of its control socket and the path from the environment.
    TGT_IPC_SOCKET=$dir/tgt$1 tgtd -f --iscsi "portal=127.0.0.1:$2" >"$dir/tgtd$1.log" 2>&1 &
    own $!
    export TGT_IPC_SOCKET=$dir/tgt$1
    wait_for 10 "tgtd answers" tgtadm --lld iscsi --mode system --op show
    run tgtadm --lld iscsi --mode target --op new --tid 1 --targetname "$target"
    open_disk "$1"
    run tgtadm --lld iscsi --mode target --op bind --tid 1 --initiator-address ALL
}
start_target 0 "${port}8"
start_target 1 "${port}9"
lock_is_held_by() {
    local sheep
    for sheep in "$@"; do dog vdi lock list | grep -q "port:$port$sheep(shared)" || return; done
    [[ $(dog vdi lock list | grep -o '(shared)' | wc -l) == "$#" ]]
}
lock_is_held_by 0 1 || die "$(dog vdi lock list)"
say "the second one closes the disk and opens it again"
run tgtadm --lld iscsi --mode logicalunit --op delete --tid 1 --lun 1
lock_is_held_by 0 || die "$(dog vdi lock list)"
open_disk 1
lock_is_held_by 0 1 || die "$(dog vdi lock list)"
a=iscsi://127.0.0.1:${port}8/$target/1
b=iscsi://127.0.0.1:${port}9/$target/1
nbd=$(nbd_uri disk 2)
io() { run timeout 60 qemu-io -f raw "$@"; }
# Each -c is a command; qemu-io ends with 0 although one has failed, but then says so.
verify() {
    local said
    show qemu-io -f raw "$@"
    said=$(timeout 60 qemu-io -f raw "$@" 2>&1) || die "$said"
    ! grep -qi 'pattern verification failed\|error' <<<"$said" || die "$said"
}

say "holes that both have seen become data, in both directions"
verify -c 'read -P 0 0 16M' -c 'read -P 0 100M 16M' "$a"
verify -c 'read -P 0 0 16M' -c 'read -P 0 100M 16M' "$b"
io -c 'write -P 0x11 1M 64k' "$a"
verify -c 'read -P 0x11 1M 64k' -c 'read -P 0 0 1M' -c 'read -P 0 1088k 2M' "$b"
io -c 'write -P 0x22 100M 9M' "$b"
verify -c 'read -P 0x22 100M 9M' -c 'read -P 0 109M 7M' "$a"
say "both write to one block, each a part of it"
io -c 'write -P 0x33 1M 4k' "$b"
io -c 'write -P 0x44 1028k 4k' "$a"
io -c 'write -P 0x55 2M 4k' "$b"
for disk in "$a" "$b" "$nbd"; do
    verify -c 'read -P 0x33 1M 4k' -c 'read -P 0x44 1028k 4k' -c 'read -P 0x11 1032k 56k' -c 'read -P 0x55 2M 4k' "$disk"
done
say "a read across data and a hole behind it"
io -c 'write -P 0x66 44M 4M' "$a"
verify -c 'read -P 0x66 44M 4M' -c 'read -P 0 48M 4M' "$b"
for disk in "$a" "$b"; do
    verify -c 'read -P 0x66 -s 0 -l 64k 49088k 128k' -c 'read -P 0 -s 64k -l 64k 49088k 128k' "$disk"
done
say "data that NBD discards is a hole again, and then data again"
verify -c 'discard 100M 4M' -c 'write -z -u 104M 4M' "$nbd"
verify -c 'read -P 0 100M 8M' -c 'read -P 0x22 108M 1M' "$a"
io -c 'write -P 0x77 102M 4k' "$b"
verify -c 'read -P 0 100M 2M' -c 'read -P 0x77 102M 4k' -c 'read -P 0 104M 4M' "$a"

say "a snapshot is taken: both go on with the new head, neither reads the frozen one, and their locks have moved with them"
run dog vdi snapshot -s frozen disk
verify -c 'read -P 0x66 44M 4M' -c 'read -P 0 100M 2M' "$b"
io -c 'write -P 0x88 44M 4k' "$a"
verify -c 'read -P 0x88 44M 4k' -c 'read -P 0x66 45060k 4k' "$b"
io -c 'write -P 0x89 44M 2k' "$b"
for disk in "$a" "$b" "$nbd"; do verify -c 'read -P 0x89 44M 2k' -c 'read -P 0x88 45058k 2k' "$disk"; done
verify -r -c 'read -P 0x66 44M 4M' -c 'read -P 0x77 102M 4k' "$(nbd_uri disk@frozen 1)"
lock_is_held_by 0 1 || die "$(dog vdi lock list)"

say "both targets write at the same time, block by block in turn"
run_line "head -c 64M /dev/urandom >$dir/in.raw"
interleaved() {
    local i
    for ((i = $2; i < 64; i += 2)); do echo "write -s $dir/in.raw.$i $((128 + i))M 1M"; done | timeout 120 qemu-io -f raw "$1"
}
run_line "split -b 1M -d -a 2 $dir/in.raw $dir/in.raw."
for i in 0 1 2 3 4 5 6 7 8 9; do mv "$dir/in.raw.0$i" "$dir/in.raw.$i"; done
interleaved "$a" 0 >"$dir/a.log" 2>&1 &
writer=$!
interleaved "$b" 1 >"$dir/b.log" 2>&1
wait $writer
! grep -qi 'fail\|error' "$dir/a.log" "$dir/b.log" || { cat "$dir/a.log" "$dir/b.log" && die "a write failed"; }
for disk in "$a" "$b" "$nbd"; do
    # It counts what it skips.
    run timeout 60 qemu-img dd -f raw -O raw bs=1M skip=128 count=192 "if=$disk" "of=$dir/out.raw"
    run cmp "$dir/in.raw" "$dir/out.raw"
done
run timeout 120 qemu-img compare -f raw -F raw "$a" "$b"
run timeout 120 qemu-img compare -f raw -F raw "$a" "$nbd"

# Of the two sheep one owns the VDI, so each kind is lost once.
come_and_go() {
    say "the sheep $1 dies and comes back; what was written meanwhile is there"
    kill_sheep "$1"
    io -c "write -P $4 200M 5M" -c "write -P $4 1030k 1k" "$3"
    start_sheep "$1"
    wait_for 20 "three members" members_are 3
    verify -c "read -P $4 200M 5M" -c 'read -P 0 205M 4M' -c "read -P $4 1030k 1k" -c 'read -P 0x44 1029k 1k' -c 'read -P 0x44 1031k 1k' "$2"
}
come_and_go 1 "$b" "$a" 0x99
come_and_go 0 "$a" "$b" 0xaa
verify -c 'read -P 0xaa 200M 5M' "$nbd"
run_line "dog vdi list; dog vdi check disk"
no_panics
