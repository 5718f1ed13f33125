#!/usr/bin/env bash
# A gateway (-g) has no vnodes and no objects, serves every VDI, and its death is nobody's loss.
. "$(dirname "$0")/../lib.sh"
need_packages qemu-utils qemu-block-extra
scenario_with_sheep 3

run sheep -c local "$dir/3" -z 3 -p "${port}3" -g
wait_for 20 "four members" members_are 4
expect 0 "^3 127.0.0.1:${port}3 0 3\$" dog node list -r -p "${port}3"
run dog vdi create disk 64M -p "${port}3"
run qemu-io -f raw -c 'write -P 0x21 3M 30M' "$(nbd_uri disk 3)"
run qemu-io -f raw -c 'read -P 0x21 3M 30M' "$(nbd_uri disk 0)"
used=$(du -sm "$dir/3" | cut -f1)
((used < 16)) || die "the gateway's directory takes $used MiB"
kill_sheep 3
wait_for 20 "three members" members_are 3
run timeout 60 qemu-io -f raw -c 'read -P 0x21 3M 30M' -c 'write -P 0x22 3M 30M' "$(nbd_uri disk 1)"
no_panics
