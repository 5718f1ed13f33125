#!/usr/bin/env bash
# tgt's VDI is snapshotted while clients write through it, and tgt notices by itself. Each snapshot holds what was acknowledged
# before it, whole, and nothing that was asked for after it; tgt goes on with what is newest, and all it has written is there in the end.
. "$(dirname "$0")/../lib.sh"
((EUID == 0)) || skip "tgtd must be root"
need_packages tgt qemu-utils qemu-block-extra libiscsi-bin libnbd-bin python3
scenario_with_sheep 3

run dog vdi create disk 128M
export TGT_IPC_SOCKET=$dir/tgt
portal=127.0.0.1:${port}9
tgtd -f --iscsi "portal=$portal" >"$dir/tgtd.log" 2>&1 &
own $!
admin() { run tgtadm --lld iscsi "$@"; }
wait_for 10 "tgtd answers" tgtadm --lld iscsi --mode system --op show
target=iqn.2026-01.test:sheep
admin --mode target --op new --tid 1 --targetname "$target"
admin --mode logicalunit --op new --tid 1 --lun 1 --bstype sheepdog --backing-store "tcp:127.0.0.1:${port}1:disk"
admin --mode target --op bind --tid 1 --initiator-address ALL
lun=iscsi://$portal/$target/1

# Each -c is a command; qemu-io ends with 0 although one has failed, but then says so.
io() {
    local words=() command said
    for command in "$@"; do words+=(-c "$command"); done
    said=$(timeout 120 qemu-io -f raw "${words[@]}" "$lun" 2>&1) || die "$said"
    ! grep -qi 'fail\|error' <<<"$said" || die "$* on tgt: $said"
}
holds() {
    run nbdcopy "$(nbd_uri "$1" 2)" "$dir/found"
    cmp "$dir/found" "$2" || die "$1 does not hold what it should"
}

say "a pattern, a snapshot, the next pattern: in new objects, in old ones, across their borders, in holes"
run truncate -s 128M "$dir/expect"
for round in 1 2 3 4 5; do
    writes=("$((round * 3))M 5M" "4190208 8k" "$((60 + round))M 4k" "$((90 + round * 4))M 4M" "$((round * 1000)) 700")
    for write in "${writes[@]}"; do
        io "write -P $((0x10 + round)) $write" "read -P $((0x10 + round)) $write"
        qemu-io -f raw -c "write -P $((0x10 + round)) $write" "$dir/expect" >/dev/null
    done
    run cp --sparse=always "$dir/expect" "$dir/expect.$round"
    run dog vdi snapshot -s "round$round" disk
done
for round in 1 2 3 4 5; do holds "disk@round$round" "$dir/expect.$round"; done
run timeout 120 qemu-img compare -f raw -F raw "$dir/expect" "$lun"

# snapshots_while PROCESS NAME: takes snapshots NAME1, NAME2, ... until the process has ended; their number is left in $count.
snapshots_while() {
    local before
    count=0
    while ! ended "$1"; do
        before=$(cat "$dir/acked" 2>/dev/null || echo 0)
        count=$((count + 1))
        dog vdi snapshot -s "$2$count" disk || die "snapshot $2$count was refused"
        # One more write may be under way and in, though not acknowledged yet.
        echo "$before $(($(cat "$dir/acked" 2>/dev/null || echo 0) + 1))" >"$dir/moment.$count"
        sleep 0.3
    done
    wait "$1"
}

say "numbered writes, and snapshots under them all the time"
io "write -P 0 0 128M"
run python3 "$root/script/numbered_writer.py" write "$lun" "$dir/acked" 12 >"$dir/writer.log" 2>&1 &
own $!
snapshots_while $! load || die "$(<"$dir/writer.log")"
tail -1 "$dir/writer.log"
((count >= 5)) || die "only $count snapshots were taken meanwhile"
for ((i = 1; i <= count; i++)); do
    read -r first last <"$dir/moment.$i"
    nbdcopy "$(nbd_uri "disk@load$i" $((i % 3)))" "$dir/found"
    python3 "$root/script/numbered_writer.py" check "$dir/found" "$first" "$last" || die "disk@load$i is wrong"
done
acked=$(<"$dir/acked")
mapfile -t reads < <(python3 "$root/script/numbered_writer.py" reads "$acked")
io "${reads[@]}"

say "an image is copied in, and libiscsi's own tests of reading and writing pass, while snapshots are taken"
run_line "head -c 40M /dev/urandom >$dir/in.raw; truncate -s 128M $dir/in.raw"
timeout 120 qemu-img convert -n -f raw -O raw "$dir/in.raw" "$lun" >"$dir/convert.log" 2>&1 &
own $!
snapshots_while $! convert || die "$(<"$dir/convert.log")"
say "$count snapshots"
run timeout 120 qemu-img compare -f raw -F raw "$dir/in.raw" "$lun"
holds disk "$dir/in.raw"
for suite in Read10 Write10; do
    timeout 120 iscsi-test-cu -d -t "ALL.$suite" "$lun" >"$dir/iscsi.log" 2>&1 &
    own $!
    snapshots_while $! "$suite" || { cat "$dir/iscsi.log" && die "iscsi-test-cu failed"; }
    say "$count snapshots"
    awk '$1 == "tests" {print "  " $0; failed = $5} END {exit failed != 0}' "$dir/iscsi.log" ||
        { cat "$dir/iscsi.log" && die "a test of libiscsi failed"; }
done

say "the first snapshots are what they were"
for round in 1 5; do holds "disk@round$round" "$dir/expect.$round"; done
no_panics
