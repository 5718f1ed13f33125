#!/usr/bin/env bash
# The requests of QEMU 5.0 as recorded in front of the original server: creating, opening, writing, flushing, closing, a snapshot and a copy on
# write. A sheep answers each as the original did, but for the flush.
. "$(dirname "$0")/../lib.sh"
need_packages python3 libnbd-bin
scenario_with_sheep 1 1

run mkdir "$dir/kept"
run python3 -B "$root/script/old_qemu.py" "${port}0" "$dir/kept" recorded
say "what it wrote is where it belongs: object 3, from 8192 on, in the snapshot and in the head"
for export in alice@tag alice; do run_line "nbdcopy '$(nbd_uri $export)' - | cmp - $dir/kept/$export"; done
expect 0 'alice .* 64 MB +4\.0 MB' dog vdi list
no_panics
