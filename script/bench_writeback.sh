# shellcheck shell=bash
# The cell of script/bench about sheep with --writeback. To be sourced by it.

# restart_sheep OPTIONS...: all three, in order.
restart_sheep() {
    local i
    dog cluster shutdown
    for i in 0 1 2; do wait_for 30 "the end of sheep $i" ended "${sheep_pids[$i]}"; done
    for i in 0 1 2; do start_sheep $i --vhost-user "$dir/vhost$i" "$@"; done
    wait_for 30 "3 members" members_are 3
    wait_for 30 "a running cluster" cluster_runs
    mapfile -t sheep_pids < <(all_sheep_pids)
}

# Writes that are answered from memory on both sides; at the end all is flushed, which fio counts in.
bench_writeback() {
    local repeat load
    read -r -a load < <(workload write4k-32)
    load+=(--end_fsync=1)
    restart_sheep --writeback
    qemu-nbd -t -f raw -k "$dir/writeback.sock" --cache=writeback "$dir/raw" &
    own $!
    local qemu_writeback=$!
    wait_for 10 "qemu-nbd" test -S "$dir/writeback.sock"
    for ((repeat = 1; repeat <= repeats; repeat++)); do
        say "writeback4k-32, $repeat of $repeats"
        measure qemu-nbd writeback4k-32 $repeat $qemu_writeback --ioengine=nbd "--uri=nbd+unix:///?socket=$dir/writeback.sock" "${load[@]}"
        measure sheep writeback4k-32 $repeat "${sheep_pids[*]}" --ioengine=nbd "--uri=$(nbd_uri bench)" "${load[@]}"
    done
    restart_sheep
}
