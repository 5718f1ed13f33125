#!/usr/bin/env bash
# QEMU 5.0's own driver, message by message: snapshots taken, listed, gone back to and deleted; machines saved and resumed; clones; disks
# resized and discarded; snapshots taken underneath; connections that break; and libsheepdog. Each walk checks its answers and data; at the end every
# disk and snapshot shows the same bytes over NBD, through another sheep.
. "$(dirname "$0")/../lib.sh"
need_packages python3 libnbd-bin
scenario_with_sheep 3 2

run mkdir "$dir/kept"
play() { run timeout 120 python3 -B "$root/script/old_qemu.py" "$port$1" "$dir/kept" "${@:2}"; }
all_exports_are_as_kept() {
    local kept name
    for kept in "$dir"/kept/*; do
        name=$(basename "$kept")
        run_line "nbdcopy '$(nbd_uri "$name" "$1")' - | cmp - '$kept'"
    done
}
play 0 snapshots branches machines
play 1 direct clones taken_underneath resizes
play 2 discards reconnects deletes library
all_exports_are_as_kept 1
for vdi in snapshots machines clones clone-b underneath deletes; do
    expect 0 "finish check&repair $vdi" dog vdi check "$vdi"
    ! grep -qE 'fix|missing|lost' <<<"$output" || die "the copies of $vdi differ: $output"
done
say "the owner of some of them dies; but for what has a single copy, and what stands on it, all is there"
rm "$dir"/kept/clone*
kill_sheep 2
wait_for 20 "two members" members_are 2
all_exports_are_as_kept 0
start_sheep 2
wait_for 30 "three members" members_are 3

say "in a cluster that enforces locks"
run dog cluster format --force --lock --copies=2
wait_for 20 "a running cluster" cluster_runs
play 1 locks
expect 0 '' dog vdi lock list
! grep -q 'port:' <<<"$output" || die "a lock is left: $output"
no_panics
