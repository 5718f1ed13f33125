#!/usr/bin/env bash
# The disk of a sheep ends its writes with errors, hangs, or loses its file: guests of that sheep notice nothing, the sheep goes
# on as a gateway, and its copies are made elsewhere. Reads that fail are served from other copies, and no log is flooded.
. "$(dirname "$0")/../lib.sh"
need_packages gcc libc6-dev python3 python3-libnbd
scenario_with_sheep 0

mkdir "$dir/faults"
run gcc -shared -fPIC -O1 -o "$dir/failing_disk.so" "$root/script/failing_disk.c"
# Sheep 1, on the disk that fails.
start_failing() { LD_PRELOAD=$dir/failing_disk.so FAULTS=$dir/faults SHEEP_IO=threads start_sheep 1 --disk-timeout 3; }
stop_failing() {
    local pid
    pid=$(sheep_pid 1)
    run kill "$pid"
    wait_for 20 "the end of sheep 1" ended "$pid"
}
choose_ports
start_sheep 0
start_failing
start_sheep 2
start_sheep 3
wait_for 20 "four members" members_are 4
run dog cluster format --copies=3
wait_for 20 "a running cluster" cluster_runs

acked() { [[ -s $dir/state.acked ]] && (($(<"$dir/state.acked") >= $1)); }
disk=''
whole() { dog vdi check -e "$disk" -p "${port}0"; }
# verify_through SHEEP...: the contents are the same through each of them.
verify_through() {
    local sheep uris=()
    for sheep in "$@"; do uris+=("$(nbd_uri "$disk" "$sheep")"); done
    run timeout 120 "$root/script/acked_writer.py" verify "$dir/state" "${uris[@]}"
}
times_in_log() { grep -c "$1" "$dir/1/sheep.log" || true; }
is_gateway() { (($(times_in_log 'has failed: this sheep goes on without it, as a gateway') == $1)); }
# while_writing FAILURES FAULT...: a guest of sheep 1 writes all the time, and then its disk gets the fault; FAILURES of it there are then.
while_writing() {
    local failures=$1 writer
    disk=disk$failures
    run dog vdi create "$disk" 64M
    rm -f "$dir/state.acked"
    "$root/script/acked_writer.py" write "$dir/state" "$(nbd_uri "$disk" 1)" --writes 3000 --seed "$failures" &
    writer=$!
    own $writer
    wait_for 60 "500 acknowledged writes" acked 500
    run "${@:2}"
    wait_for 30 "sheep 1 to go on without its disk" is_gateway "$failures"
    wait $writer || die "the writer failed"
    acked 3000 || die "the guest of the sheep noticed: $(<"$dir/state.acked") writes were acknowledged"
    wait_for 60 "all copies elsewhere" whole
    members_are 4 || die "the sheep has left"
    expect 1 "^the disk of node 127.0.0.1:${port}1 in zone 1 has failed" dog cluster health -p "${port}0"
    verify_through 0 1 2 3
}
# Copies are whole without sheep 1, too; it has its share again when it stores something and nobody fetches any more.
has_its_share() {
    local behind stored
    stored=$(dog node info -r -p "${port}0" | awk '$1 == 1 {print $3}') && ((${stored:-0} > 32 << 20)) || return 1
    behind=$(dog node recovery -r -p "${port}0") && [[ -z $behind ]]
}
back_again() {
    stop_failing
    rm -f "$dir"/faults/*
    start_failing
    wait_for 30 "four members" members_are 4
    wait_for 60 "no missing copy" whole
    wait_for 60 "copies on sheep 1" has_its_share
}

say "errors on write"
while_writing 1 touch "$dir/faults/fail-writes"
[[ -e $dir/faults/hit-writes ]] || die "no write failed"
write_error='ERROR.* I/O error on disk .*/1/objects .*, which is given up: .*os error 5'
(($(times_in_log "$write_error") == 1)) || die "the log does not say what went wrong"
(($(times_in_log "disk .*/1/objects .* has failed") == 1)) || die "the log does not name the disk, once"
grep -q "WARN.* the disk of a node has failed; .* node: 127.0.0.1:${port}1," "$dir/0/sheep.log" || die "the log of another sheep says nothing of it"

say "repaired: errors on read"
back_again
# Only what has come home is read from the disk.
stop_failing
start_failing
wait_for 30 "four members" members_are 4
lines() { cat "$dir"/[0-3]/sheep.log | wc -l; }
failed_reads() { [[ -e $dir/faults/hit-reads ]] && stat -c %s "$dir/faults/hit-reads" || echo 0; }
before=$(lines) began=$SECONDS
run touch "$dir/faults/fail-reads"
for ((round = 0; round < 20 && $(failed_reads) < 5000; round++)); do verify_through 0 1 2 3; done
failed=$(failed_reads) told=$(($(lines) - before)) took=$((SECONDS - began))
say "$told lines of all logs tell of $failed reads that failed, within $took s"
((failed >= 5000)) || die "too few reads failed"
is_gateway 1 || die "a read that fails costs the whole disk"
# Of each kind 100, and then ten a minute.
((told > 100 && told < 1000 + took)) || die "the logs tell too much of reads that fail, or nothing: $told lines"
(($(times_in_log 'I/O error on disk .*, like_it_left_out_for: 6s$') > 0)) || die "the log does not say that it leaves out lines"

say "errors on write as well"
while_writing 2 touch "$dir/faults/fail-writes"
(($(times_in_log "$write_error") == 2)) || die "the log does not say what went wrong with a write, for all the reads"

say "a disk that hangs"
back_again
while_writing 3 touch "$dir/faults/hang"
[[ -e $dir/faults/hit-hang ]] || die "nothing hung"
(($(times_in_log 'has not answered for 3 seconds') == 1)) || die "the log does not say what happened"
rm "$dir/faults/hang"

say "a file that is removed"
back_again
while_writing 4 rm "$dir/1/objects"
(($(times_in_log 'its file was removed') == 1)) || die "the log does not say what happened"
stop_failing
expect 1 'was used with this directory before' sheep -c local "$dir/1" -z 1 -p "${port}1"
verify_through 0 2 3
no_panics
