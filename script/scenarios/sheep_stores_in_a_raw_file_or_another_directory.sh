#!/usr/bin/env bash
# Objects live where the second path says: a file used as a raw disk, a loop device if there are any, or another
# directory; and they are there after a restart.
. "$(dirname "$0")/../lib.sh"
need_packages qemu-utils qemu-block-extra
scenario_with_sheep 0

truncate -s 4G "$dir/raw" "$dir/loop"
disks=("$dir/raw" "$dir/elsewhere")
if device=$( ((EUID == 0)) && losetup --find --show --direct-io=on "$dir/loop" 2>/dev/null); then
    trap 'losetup -d "$device"; clean_up $?' EXIT
    disks+=("$device")
else
    say "no loop devices here: not tried on a block device"
    disks+=("$dir/elsewhere2")
fi
start() { run sheep -c local "$dir/$1,${disks[$1]}" -z "$1" -p "$port$1"; }
choose_ports
for sheep in 0 1 2; do start "$sheep"; done
wait_for 20 "three members" members_are 3
run dog cluster format --copies=3
wait_for 20 "a running cluster" cluster_runs
run dog vdi create disk 128M
run qemu-io -f raw -c 'write -P 0x41 0 40M' -c 'write -P 0x42 100M 4k' "$(nbd_uri disk)"
kill_sheep 0 1 2
for sheep in 0 1 2; do start "$sheep"; done
wait_for 30 "a running cluster of three" sees 0 3
run qemu-io -f raw -c 'read -P 0x41 0 40M' -c 'read -P 0x42 100M 4k' -c 'read -P 0 101M 4M' "$(nbd_uri disk 1)"
no_panics
if [[ -n ${device:-} ]]; then
    for pid in $(all_sheep_pids); do kill -9 "$pid" && wait_for 5 "end of $pid" ended "$pid"; done
fi
