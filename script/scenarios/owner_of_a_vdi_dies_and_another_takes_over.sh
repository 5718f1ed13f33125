#!/usr/bin/env bash
# The sheep through which a VDI is open is killed: its client loses the connection, and everything that was acknowledged
# to it is there at once through another sheep, which also takes new writes.
. "$(dirname "$0")/../lib.sh"
need_packages python3 python3-libnbd qemu-utils qemu-block-extra
# Clients on threads of their own.
sheep_options=(--io-threads 3)
scenario_with_sheep 3

run dog vdi create disk 64M
acked() { [[ -s $dir/state.acked ]] && (($(<"$dir/state.acked") >= $1)); }
for round in 1 2 0; do
    rm -f "$dir/state.acked"
    "$root/script/acked_writer.py" write "$dir/state" "$(nbd_uri disk $round)" --seed $round &
    writer=$!
    own $writer
    wait_for 60 "500 acknowledged writes" acked 500
    kill_sheep $round
    wait $writer || die "the writer failed"
    others=$(((round + 1) % 3)) && again=$(((round + 2) % 3))
    run timeout 60 "$root/script/acked_writer.py" verify "$dir/state" "$(nbd_uri disk "$others")" "$(nbd_uri disk "$again")"
    run timeout 60 qemu-io -f raw -c 'write -P 0 0 64M' -c 'read -P 0 0 64M' "$(nbd_uri disk "$again")"
    start_sheep $round
    SHEEPDOG_DOG_PORT=$port$others wait_for 30 "three members" members_are 3
    wait_for 60 "no missing copy" dog vdi check -e disk -p "$port$others"
done
no_panics
