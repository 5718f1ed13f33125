# shellcheck shell=bash
# The cells of script/bench about what writes cost: on a VDI that was never written, and in bytes on the disk. To be
# sourced by it.

# The first writes to a thin VDI, next to the very same writes once more.
bench_fresh() {
    local cell repeat load
    for cell in fresh4k-32 fresh1m-8; do
        case $cell in
            # Over 2048 objects, so that most of the writes begin one.
            fresh4k-32) load=(--rw=randwrite --bs=4k --iodepth=32 --size=8G --number_ios=8000 --randseed=7) ;;
            fresh1m-8) load=(--rw=write --bs=1M --iodepth=8 --size=1G) ;;
        esac
        for ((repeat = 1; repeat <= repeats; repeat++)); do
            say "$cell, $repeat of $repeats"
            dog vdi create fresh 8G
            measure sheep "$cell" "$repeat" "${sheep_pids[*]}" --ioengine=nbd "--uri=$(nbd_uri fresh)" "${load[@]}"
            measure rewrite "$cell" "$repeat" "${sheep_pids[*]}" --ioengine=nbd "--uri=$(nbd_uri fresh)" "${load[@]}"
            dog vdi delete fresh
        done
    done
}

# What the sheep have given to their disks, journal and all.
bytes_on_disk() {
    local pid sum=0
    for pid in "${sheep_pids[@]}"; do sum=$((sum + $(sed -n 's/^write_bytes: //p' "/proc/$pid/io"))); done
    echo $sum
}
# Waits until what is only in the journal has gone home as well.
wait_for_quiet_disks() {
    local before=-1 now
    now=$(bytes_on_disk)
    while ((now != before)); do
        before=$now
        sleep 2
        now=$(bytes_on_disk)
    done
}

# How many bytes each copy writes for a byte of the client.
bench_amplification() {
    local size total before
    for size in 4k 64k; do
        # Enough that journals turn over.
        [[ $size == 4k ]] && total=256M || total=512M
        say "amplification of $size"
        wait_for_quiet_disks
        before=$(bytes_on_disk)
        fio --name=amplification --ioengine=nbd "--uri=$(nbd_uri bench)" --rw=randwrite "--bs=$size" --iodepth=32 --size=1G \
            "--io_size=$total" --randrepeat=0 --output-format=json >"$dir/amplification.json"
        wait_for_quiet_disks
        /usr/bin/python3 -c 'import json, sys; text = sys.stdin.read(); print(json.loads(text[text.index("{"):])["jobs"][0]["write"]["io_bytes"])' \
            <"$dir/amplification.json" | { read -r written && echo $((($(bytes_on_disk) - before) * 1000 / 3 / written)); } >"$dir/amplification.$size"
    done
}
