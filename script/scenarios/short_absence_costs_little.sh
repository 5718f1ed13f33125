#!/usr/bin/env bash
# One of three sheep is away for a moment while much less is written than there is. When it is back, about as many bytes come to it as it
# missed, it serves at once, and a write load goes on without a pause. MIB: how large the VDI is (256); MISSED: MiB written meanwhile (16).
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/../hosts.sh"
need_packages python3 python3-libnbd qemu-utils qemu-block-extra
scenario_with_hosts 3 3 -l level=debug

writer=$root/script/tracked_writer.py
mib=${MIB:-256} missed=${MISSED:-16}
now_ms() { date +%s%3N; }
figure() { cut -d' ' -f"$2" "$dir/$1.now"; }
has_written() { [[ -s $dir/$1.now ]] && (($(figure "$1" 1) >= $2)); }

run timeout 20 dog vdi create disk "${mib}M"
run timeout 250 "$writer" write "$dir/missed0" "$(nbd_uri disk 0)" --mib "$mib" --fill
# Copies forget for good what is settled when the writer's session has ended; what they had not would be sent again to whoever leaves just now.
wait_for 20 "the end of the writer's session at sheep 2" grep -q 'the session has ended with everything settled' "$dir/2/sheep.log"
copies_alike disk

# go_and_miss SEED: sheep 2 is killed, and misses writes to random blocks.
go_and_miss() {
    kill_hosts 2
    wait_for 20 "two members" members_are 2
    run timeout 250 "$writer" write "$dir/missed$1" "$(nbd_uri disk 0)" --from "$dir/missed$(($1 - 1))" --seed "$1" --writes $((missed * 256))
}
come_back() {
    start_host 2
    wait_for 30 "sheep 2 as a member" host_sees 2 3
}

chapter "Nothing else goes on"
go_and_miss 1
before=$(arrived_bytes 2) began=$(now_ms)
come_back
wait_for 120 "all copies in sync" in_sync disk
say "in sync $(($(now_ms) - began)) ms after it was started"
arrived=$(($(arrived_bytes 2) - before))
say "$arrived bytes arrived, $((arrived * 100 / (missed << 20))) % of what was written meanwhile"
((arrived <= (missed << 20) * 12 / 10 + (1 << 20))) || die "more than 1.2 times what was written meanwhile, and 1 MiB"
copies_alike disk

chapter "Under a write load"
go_and_miss 2
"$writer" write "$dir/load" "$(nbd_uri disk 0)" --from "$dir/missed2" --seed 3 --block-only >"$dir/load.out" 2>&1 &
load=$!
own $load
wait_for 30 "a write load" has_written load 200
kill -USR1 $load
began=$(now_ms)
come_back
run timeout 30 qemu-io -r -f raw -c 'read 0 4k' "$(nbd_uri disk 2)"
say "serves $(($(now_ms) - began)) ms after it was started"
wait_for 120 "all copies in sync" in_sync disk
wait_for 30 "500 writes more" has_written load $(($(figure load 1) + 500))
gap=$(figure load 4)
kill -TERM $load
wait $load || die "the writer found: $(cat "$dir/load.out")"
say "longest time without an acknowledgement from its start until it was in sync: $gap ms"
((gap < 5000)) || die "the load stood still"
copies_alike disk
run timeout 120 "$writer" verify "$dir/load" "$(nbd_uri disk 0)" "$(nbd_uri disk 1)" "$(nbd_uri disk 2)"
no_panics
