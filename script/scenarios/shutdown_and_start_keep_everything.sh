#!/usr/bin/env bash
# `dog cluster shutdown` ends every sheep in order; started again, two of three wait for the third, and then the cluster
# runs with all its VDIs. SIGTERM and `dog node kill` end one sheep in order.
. "$(dirname "$0")/../lib.sh"
need_packages qemu-utils qemu-block-extra
# Clients on threads of their own.
sheep_options=(--io-threads 3)
scenario_with_sheep 3

run dog vdi create disk 64M
run qemu-io -f raw -c 'write -P 0x51 1M 9M' "$(nbd_uri disk)"
dog vdi list -r >"$dir/before"
mapfile -t all < <(all_sheep_pids)
run dog cluster shutdown
for pid in "${all[@]}"; do wait_for 20 "the end of sheep $pid" ended "$pid"; done
for sheep in 0 1 2; do grep -q shutdown "$dir/$sheep/sheep.log" || die "sheep $sheep did not log its shutdown"; done

start_sheep 0
start_sheep 1
expect 0 '^Cluster status: Waiting for other nodes to join cluster' dog cluster info
start_sheep 2
wait_for 30 "a running cluster of three" sees 0 3
dog vdi list -r | cmp - "$dir/before" || die "the list of VDIs changed"
run qemu-io -f raw -c 'read -P 0x51 1M 9M' -c 'read -P 0 10M 1M' "$(nbd_uri disk 2)"

pid=$(sheep_pid 1)
run kill -TERM "$pid"
wait_for 20 "the end of sheep 1" ended "$pid"
wait_for 20 "two members" members_are 2
start_sheep 1
wait_for 20 "three members" members_are 3
pid=$(sheep_pid 2)
run dog node kill 2
wait_for 20 "the end of sheep 2" ended "$pid"
wait_for 20 "two members" members_are 2
run qemu-io -f raw -c 'read -P 0x51 1M 9M' "$(nbd_uri disk 1)"

say "what dog node kill has ended can be started at once"
for round in 1 2 3 4 5; do
    start_sheep 2
    wait_for 20 "three members" members_are 3
    ((round == 5)) || run dog node kill 2
done
run qemu-io -f raw -c 'read -P 0x51 1M 9M' "$(nbd_uri disk 2)"
no_panics
