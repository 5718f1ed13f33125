# shellcheck shell=bash
# The cells of script/bench about repair. To be sourced by it.
#
# A fourth sheep is added, set out, and set in again, over and over: each time a quarter of all copies is fetched anew, by it or by the other
# three. While that goes on the loads of other cells run on another VDI, next to the same load without it.

repair_size=2G
repair_loads=(write4k-1 write4k-32 write1m-8)

repair_began() {
    local behind
    behind=$(dog node recovery -r) && [[ -n $behind ]]
}
repair_ended() {
    local behind
    behind=$(dog node recovery -r) && [[ -z $behind ]]
}
copies_are_alike() { dog vdi check -e repair && dog vdi check -e bench; }
# What each sheep stores: "ID BYTES". One that is busy is left out of the list, so it is asked for until all are there.
all_stored() { dog node info -r | awk '$1 != "Total" {print $1, $3}' >"$dir/stored" && [[ $(wc -l <"$dir/stored") == "$(members)" ]]; }
stored() {
    wait_for 30 "an answer of every sheep" all_stored
    cat "$dir/stored"
}
move_sheep() { dog node "$1" "127.0.0.1:${port}3" >/dev/null; }

# time_repair DEED COMMAND...: until all that is fetched because of the command is there, next to what the disk can do just then. Adds "BYTES
# MILLISECONDS FLOOR" to DIR/repairs.DEED.
time_repair() {
    local began took
    measure_repair_floor
    stored >"$dir/stored.before"
    began=${EPOCHREALTIME/./}
    "${@:2}"
    # A sheep that is added formats its disk and joins first.
    [[ $1 != added ]] || began=${EPOCHREALTIME/./}
    wait_for 20 "the beginning of repair" repair_began
    wait_for 300 "the end of repair" repair_ended
    took=$(((${EPOCHREALTIME/./} - began) / 1000))
    wait_for 60 "copies that are alike" copies_are_alike
    # Who gave copies away stores less.
    stored | awk -v took=$took -v floor=$repair_floors 'NR == FNR {before[$1] = $2; next} $2 > before[$1] {sum += $2 - before[$1]} END {printf "%.0f %d %d\n", sum, took, floor}' \
        "$dir/stored.before" - >>"$dir/repairs.$1"
    say "repair, sheep $1: $(tail -1 "$dir/repairs.$1" | awk '{printf "%d MB in %d ms", $1 / 1e6, $2}')"
}
add_sheep() {
    start_sheep 3
    wait_for 20 "4 members" members_are 4
}

# What repair alone could reach. Who fetches and who is fetched from share one disk: so while one job writes durably, another reads as
# much. The data crosses the loopback network once, which is measured once, and is several times as fast.
repair_floors=0
measure_repair_floor() {
    repair_floors=$((repair_floors + 1))
    measure disk repair-alone $repair_floors '' --ioengine=libaio --direct=1 --sync=dsync "--filename=$dir/raw" --rw=rw --bs=1M --iodepth=8 \
        "--size=$size" --time_based "--runtime=$seconds"
}

# Both ways of moving copies while the load runs; it ends first.
measure_under_repair() {
    local load=$1 repeat=$2 deed
    read -r -a words < <(workload "$load")
    words+=(--ioengine=nbd "--uri=$(nbd_uri bench)")
    for deed in out in; do
        say "repair-$load, $repeat of $repeats, $deed"
        measure quiet "repair-$load" "$repeat.$deed" "${sheep_pids[*]}" "${words[@]}"
        move_sheep $deed
        measure sheep "repair-$load" "$repeat.$deed" "${sheep_pids[*]}" "${words[@]}"
        ! repair_ended || say "repair ended before the load did: its figures are too good"
        wait_for 300 "the end of repair" repair_ended
        wait_for 60 "copies that are alike" copies_are_alike
    done
}

bench_repair() {
    local repeat load words
    say "repair: filling $repair_size, loadavg $(cut -d' ' -f1-3 /proc/loadavg)"
    dog vdi create repair $repair_size
    fio --name=fill --ioengine=nbd "--uri=$(nbd_uri repair)" --rw=write --bs=1M --iodepth=8 "--size=$repair_size" --refill_buffers >/dev/null
    "$root/script/loopback_rate.py" "$seconds" >"$dir/network"
    time_repair added add_sheep
    mapfile -t sheep_pids < <(all_sheep_pids)
    for ((repeat = 1; repeat <= repeats; repeat++)); do
        time_repair out move_sheep out
        time_repair in move_sheep in
    done
    for load in "${repair_loads[@]}"; do
        for ((repeat = 1; repeat <= repeats; repeat++)); do measure_under_repair "$load" $repeat; done
    done
}
