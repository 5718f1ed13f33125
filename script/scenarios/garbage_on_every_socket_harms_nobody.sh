#!/usr/bin/env bash
# Noise, truncated frames and monstrous lengths on every socket of a sheep, while fio verifies a VDI through it: the
# connections are closed or answered, the sheep keeps its memory and its life, and fio notices nothing.
. "$(dirname "$0")/../lib.sh"
need_packages fio python3
# Clients on threads of their own.
sheep_options=(--io-threads 3)
scenario_with_sheep 2 2
run sheep -c local "$dir/2" -z 2 -p "${port}2" --nbd "${port}8"
wait_for 20 "three members" members_are 3

run dog vdi create disk 64M
run dog vdi create victim 64M
cd "$dir"
fio --name=witness --ioengine=nbd "--uri=$(nbd_uri disk 2)" --rw=randrw --bs=4k --size=32M --iodepth=8 --loops=50 --time_based --runtime=15 \
    --verify=crc32c --verify_fatal=1 --verify_state_save=0 >"$dir/fio.log" 2>&1 &
fio=$!
own $fio
pid=$(sheep_pid 2)
memory() { awk '/^VmRSS/ {print int($2 / 1024)}' "/proc/$pid/status"; }
before=$(memory)
run /usr/bin/python3 "$root/script/garbage.py" native "tcp:127.0.0.1:${port}2" "unix:$dir/2/sock"
run /usr/bin/python3 "$root/script/garbage.py" nbd "unix:$dir/2/nbd.sock" "tcp:127.0.0.1:${port}8"
[[ -d /proc/$pid && $(sheep_pid 2) == "$pid" ]] || { tail -5 "$dir/2/sheep.log" && die "the sheep died"; }
peak=$(awk '/^VmHWM/ {print int($2 / 1024)}' "/proc/$pid/status")
say "resident before $before MiB, at its peak $peak MiB, now $(memory) MiB"
((peak < 512)) || die "the sheep took $peak MiB"
wait $fio || { cat "$dir/fio.log" && die "fio noticed"; }
expect 0 'running' dog cluster info -p "${port}2"
members_are 3 || die "$(members) members are left of 3"
[[ $(dog vdi list -r | wc -l) == 2 ]] || die "garbage changed the list of VDIs"
no_panics
