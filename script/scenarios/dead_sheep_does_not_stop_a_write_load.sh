#!/usr/bin/env bash
# One sheep of three is killed under a write load that goes through another: the load goes on after a short pause, no
# client sees an error, and every block reads back through both that are left.
. "$(dirname "$0")/../lib.sh"
need_packages fio libnbd-bin python3 python3-libnbd
scenario_with_sheep 3

run dog vdi create disk 256M
acked() { [[ -s $dir/state.acked ]] && (($(<"$dir/state.acked") >= $1)); }
show acked_writer.py write "$dir/state" "$(nbd_uri disk 0)" --mib 128 --writes 4000
"$root/script/acked_writer.py" write "$dir/state" "$(nbd_uri disk 0)" --mib 128 --writes 4000 &
writer=$!
own $writer
wait_for 60 "1000 acknowledged writes" acked 1000
kill_sheep 2
wait $writer || die "the writer failed"
acked 4000 || die "only $(<"$dir/state.acked") of 4000 writes were acknowledged"
run "$root/script/acked_writer.py" verify "$dir/state" "$(nbd_uri disk 0)" "$(nbd_uri disk 1)"
wait_for 20 "two members" members_are 2

say "the dead one comes back, catches up under load, and then another one dies"
start_sheep 2
wait_for 30 "three members" members_are 3
cd "$dir"
run timeout 120 fio --name=load --ioengine=nbd "--uri=$(nbd_uri disk 2)" --rw=randwrite --bs=4k --offset=128M --size=32M --iodepth=16 \
    --verify=crc32c --do_verify=1 --verify_state_save=0
wait_for 60 "no missing copy" dog vdi check -e disk
kill_sheep 0
run timeout 60 "$root/script/acked_writer.py" verify "$dir/state" "$(nbd_uri disk 2)" "$(nbd_uri disk 1)"
run timeout 120 fio --name=load --ioengine=nbd "--uri=$(nbd_uri disk 1)" --rw=randwrite --bs=4k --offset=128M --size=32M --iodepth=16 \
    --verify=crc32c --verify_only=1 --verify_state_save=0
no_panics
