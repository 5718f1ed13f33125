#!/usr/bin/env bash
# All sheep are killed at once in the middle of a write load, three times over. After each restart every acknowledged
# block is there, blocks under way are old or new but not torn, and all sheep show the same.
. "$(dirname "$0")/../lib.sh"
need_packages python3 python3-libnbd
scenario_with_sheep 3

acked() { [[ -s $dir/state.acked ]] && (($(<"$dir/state.acked") >= $1)); }
for round in 1 2 3; do
    run dog vdi create "disk$round" 64M
    rm -f "$dir/state.acked"
    "$root/script/acked_writer.py" write "$dir/state" "$(nbd_uri "disk$round" $((round % 3)))" --seed "$round" &
    writer=$!
    own $writer
    wait_for 60 "$((round * 400)) acknowledged writes" acked $((round * 400))
    kill_sheep 0 1 2
    wait $writer || die "the writer failed"
    mv "$dir/state" "$dir/state$round"
    for sheep in 0 1 2; do start_sheep "$sheep"; done
    wait_for 30 "a running cluster of three" sees 0 3
    for ((check = 1; check <= round; check++)); do
        run timeout 60 "$root/script/acked_writer.py" verify "$dir/state$check" "$(nbd_uri "disk$check" 0)" "$(nbd_uri "disk$check" 1)" \
            "$(nbd_uri "disk$check" 2)"
    done
done
no_panics
