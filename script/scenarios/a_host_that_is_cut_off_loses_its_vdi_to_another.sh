#!/usr/bin/env bash
# The sheep that serves a VDI under 1000 writes in flight is cut off from all others. Its clients are acknowledged nothing that could
# not be replicated, another host opens the VDI within 10 s, and when the link is mended everything that was acknowledged on
# either side is there, on copies that are alike. ROUNDS: how many times over (1).
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/../hosts.sh"
need_packages python3 python3-libnbd
scenario_with_hosts 3 3

rounds=${ROUNDS:-1}
figure() { cut -d' ' -f"$2" "$dir/$1.now"; }
has_written() { [[ -s $dir/$1.now ]] && (($(figure "$1" 1) >= $2)); }
flies() { (($(figure "$1" 2) >= $2)); }
now_ms() { date +%s%3N; }
# The log tells whole seconds, so it is watched.
taken_over() { (($(grep -c 'taking over' "$dir/$1/sheep.log") > $2)); }

worst_answer=0 worst_takeover=0
for ((round = 1; round <= rounds; round++)); do
    owner=$((round % 3)) other=$(((round + 1) % 3))
    disk=disk$round
    run timeout 20 dog vdi create "$disk" 64M
    uris=()
    for connection in 1 2 3 4; do uris+=("$(nbd_uri "$disk" $owner)"); done
    "$root/script/tracked_writer.py" write "$dir/old$round" "${uris[@]}" --mib 32 --flight 250 --seed "$round" --block-only >"$dir/old$round.out" 2>&1 &
    old=$! && own $old
    wait_for 60 "1000 acknowledged writes" has_written "old$round" 1000
    wait_for 30 "1000 writes in flight" flies "old$round" 900
    taken=$(grep -c 'taking over' "$dir/$other/sheep.log" || true)

    unplug $owner && asked=$(now_ms)
    timeout 60 "$root/script/held_writes.py" overwrite "$dir/seen$round" "$(nbd_uri "$disk" $other)" 32 >"$dir/answered" &
    reader=$! && own $reader
    wait_for 20 "the take-over" taken_over $other "$taken"
    took=$(now_ms)
    # From here on the old owner can acknowledge nothing: the new one knows nothing of it.
    held=$(figure "old$round" 1)
    kill -TERM $old
    wait $reader || die "the other host was not served within 60 s"
    answered=$(<"$dir/answered")
    say "round $round: first answer at the other host $((answered - asked)) ms after its request, $((answered - took)) ms after the take-over"
    ((answered - asked < 10000)) || die "the other host had to wait $((answered - asked)) ms"
    ((answered - asked <= worst_answer)) || worst_answer=$((answered - asked))
    ((answered - took <= worst_takeover)) || worst_takeover=$((answered - took))

    run timeout 60 "$root/script/tracked_writer.py" write "$dir/new$round" "$(nbd_uri "$disk" $other)" --first-mib 32 --mib 32 --writes 1000
    now=$(figure "old$round" 1) flying=$(figure "old$round" 2)
    ((now == held)) || die "the host that was cut off acknowledged $((now - held)) writes after the take-over"
    plug_in $owner
    wait $old || die "the old client's writer found: $(cat "$dir/old$round.out")"
    cat "$dir/old$round.out"
    say "$flying writes were held; acknowledged since: $(($(figure "old$round" 1) - held))"
    wait_for 60 "full redundancy" in_sync "$disk"
    copies_alike "$disk"
    uris=()
    for host in 0 1 2; do uris+=("$(nbd_uri "$disk" $host)"); done
    run timeout 60 "$root/script/held_writes.py" check "$dir/seen$round" "$dir/old$round" "${uris[@]}"
    run timeout 60 "$root/script/tracked_writer.py" verify "$dir/new$round" "${uris[@]}"
    run timeout 20 dog vdi delete "$disk"
done
say "$rounds rounds: first answer within $worst_answer ms of its request, within $worst_takeover ms of the take-over"
no_panics
