#!/usr/bin/env bash
# A volume of 16 PiB: every offset is its own, snapshots and clones of it work and take no time, what is empty is passed over
# at once, and when it goes all its space comes back.

. "$(dirname "$0")/../lib.sh"
need_packages qemu-utils qemu-block-extra
scenario_with_sheep 2 2

# io WHAT SHEEP COMMAND...: qemu-io on an export; fails if a pattern does not match.
io() {
    local words=(-d unmap) command
    [[ $1 != *@* ]] || words+=(-r)
    for command in "${@:3}"; do words+=(-c "$command"); done
    # qemu-io ends with 0 although a pattern did not match.
    output=$(qemu-io -f raw "${words[@]}" "$(nbd_uri "$1" "$2")" 2>&1) || die "qemu-io on $1: $output"
    ! grep -qiE 'fail|error' <<<"$output" || die "qemu-io on $1 through sheep $2: $output"
}
used_bytes() { dog node info -r | awk '!/^Total/ {sum += $3} END {print sum + 0}'; }
nothing_used() { [[ $(used_bytes) == 0 ]]; }
# Own and shared bytes, as listed.
listed() { dog vdi list -r "$1" | awk '$3 == 0 {print $5, $6}'; }
resident_kib() { awk '/^VmRSS/ {print $2}' "/proc/$(sheep_pid "$1")/status"; }

# ---- what the words say ---------------------------------------------------------------------------------------------

expect 64 'VDI size is too large: at most 4.0 TB .*\(-y\)' dog vdi create huge 16P
expect 64 'VDI size is too large: at most 16 PB' dog vdi create -y huge 17P
expect 1 'objects of 4 MiB' dog vdi create -y -z 23 huge 16P
run dog vdi create small 1G
expect 64 "New VDI size is too large. This volume's max size is 4398046511104" dog vdi resize small 5T
run dog vdi resize small 4T
io small 0 "write -P 1 1023G 64k"
run dog vdi resize -y small 5T
io small 1 "write -P 2 4T 64k" "read -P 1 1023G 64k" "read -P 2 4T 64k" "read -P 0 $(((4 << 40) - 65536)) 64k"
expect 64 'Shrinking' dog vdi resize small 4T
run dog vdi delete small

# ---- every offset is its own ----------------------------------------------------------------------------------------

run dog vdi create -y huge 16P
expect 0 ' 16 PB ' dog vdi list huge
nbdinfo_size=$(qemu-img info --output=json "$(nbd_uri huge)" | sed -n 's/.*"virtual-size": \([0-9]*\).*/\1/p' | head -1)
[[ $nbdinfo_size == 18014398509481984 ]] || die "qemu-img sees a size of $nbdinfo_size"
end=$((1 << 54))
io huge 0 "write -P 0x11 0 64k" "write -P 0x12 $(((4 << 40) - 4096)) 8k" "write -P 0x13 9000T 1M" "write -P 0x14 $((end - 65536)) 64k"
io huge 1 "read -P 0x11 0 64k" "read -P 0 64k 1M" "read -P 0x12 $(((4 << 40) - 4096)) 8k" "read -P 0 8T 1M" \
    "read -P 0x13 9000T 1M" "read -P 0x14 $((end - 65536)) 64k" "read -P 0 $((end - (4 << 20))) 1M"
[[ $(listed huge) == "$((5 << 22)) 0" ]] || die "listed as $(listed huge)"
expect 0 '^4294967295 ' dog vdi object map huge
expect 0 'has the object' dog vdi object location -i 4294967295 huge
expect 0 'finish check&repair huge' dog vdi check huge
! grep -qE 'fix|missing|lost' <<<"$output" || die "the copies of huge differ: $output"

# ---- snapshots and clones -------------------------------------------------------------------------------------------

best=1000000
for tag in a b c d e f; do
    before=$(date +%s%N)
    dog vdi snapshot -s "$tag" huge
    took=$((($(date +%s%N) - before) / 1000000))
    say "snapshot $tag took $took ms"
    ((took >= best)) || best=$took
    io huge 0 "write -P 0x20 9000T 4k"
done
((best < 100)) || die "the quickest of six snapshots of 16 PiB took $best ms"
io huge@a 1 "read -P 0x11 0 64k" "read -P 0x13 9000T 1M" "read -P 0x14 $((end - 65536)) 64k"
io huge 1 "read -P 0x20 9000T 4k" "read -P 0x13 $(((9000 << 40) + 4096)) 64k" "write -P 0x22 $((end - 4096)) 4k"
io huge@f 0 "read -P 0x14 $((end - 65536)) 64k"

run dog vdi clone -s a huge copy
io copy 1 "read -P 0x12 $(((4 << 40) - 4096)) 8k" "write -P 0x33 $((end - 4096)) 512" "discard 9000T 1M" "write -P 0x34 100T 4k"
io copy 0 "read -P 0x33 $((end - 4096)) 512" "read -P 0x14 $((end - 65536)) 61440" "read -P 0 9000T 1M" "read -P 0x34 100T 4k"
io huge@a 0 "read -P 0x13 9000T 1M" "read -P 0 100T 4k"
run dog vdi rollback -f -s a huge
io huge 1 "read -P 0x13 9000T 1M" "read -P 0x14 $((end - 65536)) 64k" "write -P 0x44 0 4k"

# ---- what is empty costs nothing ------------------------------------------------------------------------------------

before=$SECONDS
run dog vdi create -y empty 16P
run_line "dog vdi read empty 12345T 1M | cmp - <(head -c 1M /dev/zero)"
expect 0 ' 16 PB  0.0 MB  0.0 MB ' dog vdi list empty
expect 0 '^Index' dog vdi object map empty
((SECONDS - before < 20)) || die "looking through an empty volume took $((SECONDS - before)) s"

# ---- nothing is left ------------------------------------------------------------------------------------------------

kill_sheep 1
wait_for 20 "one member" members_are 1
start_sheep 1
wait_for 30 "a running cluster of two" sees 1 2
io copy 1 "read -P 0x33 $((end - 4096)) 512" "read -P 0x34 100T 4k"
run dog vdi delete empty
run dog vdi delete huge
for tag in a b c d e f; do run dog vdi delete -s "$tag" huge; done
io copy 0 "read -P 0x33 $((end - 4096)) 512" "read -P 0x14 $((end - 65536)) 61440" "read -P 0x12 $(((4 << 40) - 4096)) 8k" "read -P 0 9000T 1M"
run dog vdi delete copy
wait_for 20 "all space to be given back" nothing_used
for i in 0 1; do
    say "sheep $i uses $(resident_kib "$i") KiB of memory"
    (($(resident_kib "$i") < 1000000)) || die "sheep $i has grown"
done
no_panics
