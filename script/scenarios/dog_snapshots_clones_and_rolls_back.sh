#!/usr/bin/env bash
# What a volume's owner does besides reading and writing: snapshot, clone, roll back, delete. Contents are read
# through NBD, of snapshots too, each time through another sheep than the one that was written through.

. "$(dirname "$0")/../lib.sh"
need_packages qemu-utils qemu-block-extra
scenario_with_sheep 3

# io WHAT SHEEP COMMAND...: qemu-io on an export; fails if a pattern does not match.
io() {
    local words=(-d unmap) command
    [[ $1 != *@* ]] || words+=(-r)
    for command in "${@:3}"; do words+=(-c "$command"); done
    # qemu-io ends with 0 although a pattern did not match.
    output=$(qemu-io -f raw "${words[@]}" "$(nbd_uri "$1" "$2")" 2>&1) || die "qemu-io on $1: $output"
    ! grep -qiE 'fail|error' <<<"$output" || die "qemu-io on $1 through sheep $2: $output"
}
refused() { ! qemu-io -f raw -c "write -P 1 0 4k" "$(nbd_uri "$1" 0)" >/dev/null 2>&1 || die "$1 could be written to"; }

run dog vdi create disk 64M
io disk 0 "write -P 0x11 0 16M"
run dog vdi snapshot -s one disk
io disk 1 "read -P 0x11 0 16M" "write -P 0x22 4k 4k" "discard 8M 4M" "write -P 0x33 20M 64k"
io disk 2 "read -P 0x11 0 4k" "read -P 0x22 4k 4k" "read -P 0x11 8k 1M" "read -P 0 8M 4M" "read -P 0x33 20M 64k"
io disk@one 2 "read -P 0x11 0 16M" "read -P 0 16M 16M"
refused disk@one
expect 1 'tag \(one\) is existed' dog vdi snapshot -s one disk
run dog vdi snapshot -s two disk
expect 0 'disk@two|two' dog vdi list disk

run dog vdi clone -s one disk copy
io copy 0 "read -P 0x11 0 16M" "write -P 0x44 1M 512" "write -P 0x44 4M 4M" "discard 12M 64k"
io copy 1 "read -P 0x44 1M 512" "read -P 0x11 1049088 512" "read -P 0x44 4M 4M" "read -P 0 12M 64k" "read -P 0x11 13M 3M"
io disk@one 1 "read -P 0x11 0 16M"
run dog vdi snapshot -s c1 copy
run dog vdi clone -s c1 copy copy2
io copy2 2 "read -P 0x44 1M 512" "read -P 0x11 0 1M" "write -P 0x55 0 4k"
io copy2 0 "read -P 0x55 0 4k" "read -P 0x11 4k 1020k" "read -P 0x44 4M 4M" "read -P 0 12M 64k"

run dog vdi rollback -f -s one disk
io disk 0 "read -P 0x11 0 16M" "read -P 0 16M 16M"
io disk@two 1 "read -P 0x22 4k 4k" "read -P 0x33 20M 64k"

# The original goes; what stands on it stays.
run dog vdi delete disk
run dog vdi delete -s two disk
run dog vdi delete -s one disk
io copy 1 "read -P 0x44 1M 512" "read -P 0x11 2M 1M" "read -P 0x11 13M 3M"
io copy2 1 "read -P 0x55 0 4k" "read -P 0x11 4k 1020k"
kill_sheep 1
wait_for 20 "two members" members_are 2
start_sheep 1
wait_for 30 "a running cluster of three" sees 1 3
io copy2 1 "read -P 0x55 0 4k" "read -P 0x11 4k 1020k" "read -P 0x44 4M 4M"
expect 0 "finish check&repair copy2" dog vdi check copy2
! grep -qE 'fix|missing|lost' <<<"$output" || die "the copies of copy2 differ: $output"
run dog vdi delete copy2
run dog vdi delete -s c1 copy
run dog vdi delete copy
nothing_used() { [[ $(dog node info -r | awk '!/^Total/ {sum += $3} END {print sum + 0}') == 0 ]]; }
wait_for 20 "all space to be given back" nothing_used
no_panics
