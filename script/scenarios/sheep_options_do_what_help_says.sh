#!/usr/bin/env bash
# -b, -y, -P, -l, -f and --nbd of a running sheep, and the signals of its log and its end.
. "$(dirname "$0")/../lib.sh"
need_packages libnbd-bin
scenario_with_sheep 0
choose_ports
mkdir "$dir/logs"

run sheep -c local "$dir/0" -z 9 -p "${port}0" -b 127.0.0.1 -y 127.0.0.1 -P "$dir/pid" -l "level=debug,dir=$dir/logs,format=json" --nbd "${port}8"
pid=$(sheep_pid 0)
[[ $(<"$dir/pid") == "$pid" ]] || die "the pid file says $(<"$dir/pid"), not $pid"
expect 0 "^0 127.0.0.1:${port}0 [0-9]+ 9\$" dog node list -r
expect 2 'failed to connect to 127.0.0.2' dog node list -a 127.0.0.2
run dog cluster format --copies=1
wait_for 20 "a running cluster" cluster_runs
run dog vdi create disk 4M
expect 0 '^4194304$' nbdinfo --size "nbd://127.0.0.1:${port}8/disk"
expect 1 '.' sheep -c local "$dir/1" -p "${port}1" -P "$dir/pid"

/usr/bin/python3 -c 'import json, sys; [json.loads(line) for line in sys.stdin]' <"$dir/logs/sheep.log" || die "the log is not JSON"
grep -q 'sheepdog daemon .* started' "$dir/logs/sheep.log" || die "the log does not tell of the start"
run kill -HUP "$pid"
rotated() { compgen -G "$dir/logs/sheep.log.*"; }
wait_for 10 "the rotated log" rotated
wait_for 10 "the new log" test -e "$dir/logs/sheep.log"

run kill -TERM "$pid"
wait_for 20 "the end of the sheep" ended "$pid"
[[ ! -e $dir/pid ]] || die "the pid file is still there"

say "in the foreground, logging to stdout"
sheep -c local "$dir/0" -z 9 -p "${port}0" -l dst=stdout >"$dir/out" 2>&1 &
foreground=$!
own $foreground
wait_for 20 "the start in the log" grep -q 'sheepdog daemon .* started' "$dir/out"
wait_for 20 "a running cluster" cluster_runs
kill -TERM $foreground
wait $foreground || die "SIGTERM ended it with $?, not 0"
no_panics
