#!/usr/bin/env bash
# Sheep with --writeback. All are killed at once in the middle of a load: of a writer that flushes all that it had flushed is there, of one that never does each block is what it
# was or what was written, not torn, and all sheep and copies show the same. One sheep that is killed alone, the writers' own too, loses nothing
# that was acknowledged.
. "$(dirname "$0")/../lib.sh"
need_packages python3 python3-libnbd
sheep_options=(--writeback)
scenario_with_sheep 3

acked() { [[ -s $dir/$1.acked ]] && (($(<"$dir/$1.acked") >= $2)); }
# begin NAME SHEEP SEED OPTIONS...: a writer of its own volume, which is there already: only then is anything answered early.
writers=()
begin() {
    [[ -e $dir/$1.made ]] || run dog vdi create -P "$1" 32M
    touch "$dir/$1.made"
    rm -f "$dir/$1.acked"
    "$root/script/acked_writer.py" write "$dir/$1" "$(nbd_uri "$1" "$2")" --mib 32 --seed "$3" "${@:4}" &
    writers+=($!)
    own $!
}
end_writers() {
    local writer
    for writer in "${writers[@]}"; do wait "$writer" || die "a writer failed"; done
    writers=()
}
verify() { run timeout 60 "$root/script/acked_writer.py" verify "$dir/$1" "${@:2}"; }
all_sheep() { for sheep in 0 1 2; do nbd_uri "$1" $sheep; done; }

for round in 1 2; do
    begin "flushing$round" 0 "$round" --flush 20
    begin "careless$round" $((round % 3)) "$round"
    wait_for 60 "acknowledged writes" acked "flushing$round" 1000
    wait_for 60 "acknowledged writes" acked "careless$round" 1000
    kill_sheep 0 1 2
    end_writers
    for sheep in 0 1 2; do start_sheep "$sheep"; done
    wait_for 30 "a running cluster of three" sees 0 3
    for name in "flushing$round" "careless$round"; do
        mapfile -t uris < <(all_sheep "$name")
        verify "$name" "${uris[@]}" --after-power-loss
        run dog vdi check "$name"
    done
done

for killed in 1 2; do
    begin "alone$killed" "$killed" "$killed"
    begin "beside$killed" 0 "$killed" --writes 8000
    wait_for 60 "acknowledged writes" acked "alone$killed" 1000
    wait_for 60 "acknowledged writes" acked "beside$killed" 1000
    # The one writer goes on, the other has lost its sheep.
    kill_sheep $killed
    end_writers
    start_sheep $killed
    wait_for 30 "a running cluster of three" sees 0 3
    for name in "alone$killed" "beside$killed"; do
        mapfile -t uris < <(all_sheep "$name")
        verify "$name" "${uris[@]}"
        run dog vdi check "$name"
    done
done
no_panics
