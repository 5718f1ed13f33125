#!/usr/bin/env bash
# libnbd's nbdcopy (several connections, many requests in flight) puts an image into a VDI and gets the same bytes back,
# through this and another sheep; holes stay holes.
. "$(dirname "$0")/../lib.sh"
need_packages libnbd-bin
scenario_with_sheep 3

run_line "head -c 50000000 /dev/urandom >$dir/in.raw; truncate -s 96M $dir/in.raw"
run_line "head -c 5000000 /dev/urandom | dd of=$dir/in.raw bs=1M seek=80 conv=notrunc status=none"
run dog vdi create disk 96M
run nbdcopy --destination-is-zero "$dir/in.raw" "$(nbd_uri disk 0)"
run nbdcopy "$(nbd_uri disk 1)" "$dir/out.raw"
run cmp "$dir/in.raw" "$dir/out.raw"
run_line "nbdcopy '$(nbd_uri disk 2)' - | cmp $dir/in.raw -"
used=$(dog vdi list -r disk | cut -d' ' -f5)
((used <= 64 << 20)) || die "55 MB of data use $used bytes: the holes were filled"
no_panics
