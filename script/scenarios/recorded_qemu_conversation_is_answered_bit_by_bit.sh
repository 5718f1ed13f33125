#!/usr/bin/env bash
# The requests of QEMU 5.0 as recorded in front of the original server: creating, opening, writing, flushing, a header
# write and closing. A sheep answers each as the original did, but for the flush.
. "$(dirname "$0")/../lib.sh"
need_packages python3
scenario_with_sheep 1 1

run python3 "$root/script/old_qemu.py" "${port}0"
say "what it wrote is where it belongs: object 3, from 8192 on"
run_line "dog vdi read alice 12582912 12288 | cmp - <(head -c 8192 /dev/zero; head -c 4096 /dev/zero | tr '\\0' Z)"
expect 0 'alice .* 64 MB +4\.0 MB' dog vdi list
no_panics
