# shellcheck shell=bash
# The cell of script/bench about --io-threads. To be sourced by it.

# Two clients at once on one sheep, whose connections are on the data plane's thread, and then on one of their own.
bench_threads() {
    local threads system kind repeat load
    for threads in 1 2; do
        restart_sheep --io-threads $threads
        system=sheep
        [[ $threads != 1 ]] || system=one-thread
        for kind in read4k-32 write4k-32; do
            read -r -a load < <(workload $kind)
            for ((repeat = 1; repeat <= repeats; repeat++)); do
                say "threads-$kind with $threads, $repeat of $repeats"
                measure $system threads-$kind $repeat "${sheep_pids[*]}" --ioengine=nbd "--uri=$(nbd_uri bench)" --numjobs=2 "${load[@]}"
            done
        done
    done
    restart_sheep
}
