# shellcheck shell=bash
# The cells of script/bench about snapshots and clones. To be sourced by it.

# milliseconds COMMAND...: how long the command takes.
milliseconds() {
    local before=$EPOCHREALTIME
    "$@" >/dev/null
    echo $(((${EPOCHREALTIME/./} - ${before/./}) / 1000))
}

# A snapshot and a clone of 1 GiB that is written, and of 1 TiB of which every object is in the table.
bench_snapshot() {
    local large=1T size vdi repeat
    ((repeats > 1)) || large=64G
    say "snapshot: making $large of objects"
    # Of 32 MiB: a store has room for an object for each 256 KiB of its size.
    dog vdi create -z 25 entered "$large"
    "$root/script/enter_objects.py" "$(nbd_uri entered)" $((32 << 20))
    for size in 1G "$large"; do
        vdi=bench
        [[ $size == 1G ]] || vdi=entered
        for ((repeat = 1; repeat <= repeats; repeat++)); do
            say "snapshot of $size, $repeat of $repeats"
            milliseconds dog vdi snapshot -s "s$repeat" "$vdi" >>"$dir/snapshots.$size snapshot"
            milliseconds dog vdi clone -s "s$repeat" "$vdi" "clone$repeat" >>"$dir/snapshots.$size clone"
            dog vdi delete "clone$repeat"
            dog vdi delete -s "s$repeat" "$vdi"
        done
    done
    dog vdi delete entered
}

# Small writes at once after a snapshot, next to the same load before it.
bench_after_snapshot() {
    local repeat load
    read -r -a load < <(workload write4k-32)
    # Not counted: until blocks go home as fast as they come the journal takes more than the disk will.
    fio --name=warm-up --ioengine=nbd "--uri=$(nbd_uri bench)" "${load[@]}" >/dev/null
    for ((repeat = 1; repeat <= repeats; repeat++)); do
        say "after-snapshot, $repeat of $repeats"
        measure before after-snapshot "$repeat" "${sheep_pids[*]}" --ioengine=nbd "--uri=$(nbd_uri bench)" "${load[@]}"
        dog vdi snapshot -s "a$repeat" bench
        measure sheep after-snapshot "$repeat" "${sheep_pids[*]}" --ioengine=nbd "--uri=$(nbd_uri bench)" "${load[@]}"
        dog vdi delete -s "a$repeat" bench
    done
}

# Sixteen clones of one image are read from beginning to end at the same time; the floor reads a raw file in their place.
bench_boot_storm() {
    local i jobs=() floor=() size=64M
    say "boot-storm: 16 clones"
    dog vdi create image $size
    fio --name=fill --ioengine=nbd "--uri=$(nbd_uri image)" --rw=write --bs=1M --size=$size --refill_buffers >/dev/null
    dog vdi snapshot -s image image
    for i in {1..16}; do
        dog vdi clone -s image image "boot$i"
        jobs+=("--name=boot$i" --ioengine=nbd "--uri=$(nbd_uri "boot$i" $((i % 3)))" --rw=read --bs=64k --iodepth=4 "--size=$size")
        floor+=("--name=boot$i" --ioengine=nbd "--uri=nbd+unix:///?socket=$dir/storm.sock" --rw=read --bs=64k --iodepth=4 "--size=$size")
    done
    qemu-nbd -t -e 16 -r -f raw -k "$dir/storm.sock" --cache=none --aio=native "$dir/raw" &
    own $!
    wait_for 10 "qemu-nbd" test -S "$dir/storm.sock"
    measure_all qemu-nbd boot-storm 1 "$!" "${floor[@]}"
    measure_all sheep boot-storm 1 "${sheep_pids[*]}" "${jobs[@]}"
    for i in {1..16}; do dog vdi delete "boot$i"; done
}
