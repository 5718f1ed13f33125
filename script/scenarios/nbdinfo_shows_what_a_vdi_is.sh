#!/usr/bin/env bash
# libnbd's nbdinfo sees the size, the abilities and the allocation of a VDI, and lists all VDIs of the cluster with their snapshots.
. "$(dirname "$0")/../lib.sh"
need_packages libnbd-bin qemu-utils
scenario_with_sheep 3

run dog vdi create alice 64M
run dog vdi create bob 1G
expect 0 '^67108864$' nbdinfo --size "$(nbd_uri alice)"
expect 0 'export="?alice"?:' nbdinfo --list "nbd+unix:///?socket=$dir/0/nbd.sock"
expect 0 'export="?bob"?:' nbdinfo --list "nbd+unix:///?socket=$dir/1/nbd.sock"
run dog vdi snapshot -s monday bob
expect 0 'export="?bob@monday"?:' nbdinfo --list "nbd+unix:///?socket=$dir/2/nbd.sock"

for ability in flush fua trim zero fast-zero multi-conn cache; do
    expect 0 '' nbdinfo --can "$ability" "$(nbd_uri alice)"
done
expect 0 'base:allocation' nbdinfo "$(nbd_uri alice)"
expect 2 '' nbdinfo --is read-only "$(nbd_uri alice)"

run qemu-io -f raw -c 'write -P 7 8M 4M' "$(nbd_uri alice)"
run nbdinfo --map "$(nbd_uri alice)" | tee "$dir/map"
awk '$3 == 0 {data += $2} $3 == 3 {holes += $2} END {exit !(data == 4194304 && holes == 62914560)}' "$dir/map" ||
    die "expected 4 MiB of data and 60 MiB of holes"
no_panics
