#!/usr/bin/env bash
# dog cluster health, node recovery and node stat tell the truth while a sheep of three goes and comes back, and another one goes too.
. "$(dirname "$0")/../lib.sh"
scenario_with_sheep 0
choose_ports

say "nobody, and no cluster"
expect 2 '^unreachable$' dog cluster health
for i in 0 1 2; do start_sheep "$i"; done
wait_for 20 "3 members" members_are 3
expect 2 '^unformatted$' dog cluster health
run dog cluster format --copies=3
wait_for 20 "a running cluster" cluster_runs

say "all is well"
expect 0 '^ok$' dog cluster health
health_is() { [[ $(dog cluster health -r "${@:2}" | head -1) == "$1" ]]; }
idle() { [[ $(dog node recovery | wc -l) == 2 ]]; }
idle || die "a new cluster recovers: $(dog node recovery)"
run dog vdi create disk 256M
head -c 64M /dev/urandom >"$dir/data"
run_line "dog vdi write disk 0 64M <$dir/data"

say "requests and bytes are counted, of clients and of peers"
run dog node stat
counts() { dog node stat -r -p "$port$1" | sed -n "$2p"; }
read -r _ total writes reads _ _ written _ < <(counts 0 1)
((total >= writes + reads && writes >= 16 && written >= 64 << 20)) || die "clients of sheep 0: $(counts 0 1)"
read -r _ total writes _ _ _ written _ < <(counts 1 2)
((total >= writes && writes >= 16 && written >= 64 << 20)) || die "peers of sheep 1: $(counts 1 2)"
cmp <(dog vdi read disk 0 64M -p "${port}1") "$dir/data" || die "the data are not the same"
read -r _ _ _ reads _ _ _ read_bytes < <(counts 1 1)
((reads >= 16 && read_bytes >= 64 << 20)) || die "clients of sheep 1: $(counts 1 1)"
quiet() { [[ $(counts "$1" 2 | cut -f1) == 0 ]]; }
for i in 0 1 2; do wait_for 10 "answers to all peers of sheep $i" quiet "$i"; done

say "a sheep dies"
kill_sheep 2
wait_for 20 "a degraded cluster" health_is degraded
wait_for 20 "a degraded cluster, as sheep 1 sees it" health_is degraded -p "${port}1"
run_line 'dog cluster health || echo "exit code $?"'
expect 1 "^node 127.0.0.1:${port}2 in zone 2 is down since epoch 2 " dog cluster health
expect 1 'placement groups of VDIs with 3 copies lack complete copies; the worst have 2: disk$' dog cluster health
expect 1 '"health": "degraded"' dog cluster health --json
idle || die "nobody can make the copies that are missing: $(dog node recovery)"
run_line "dog vdi write disk 64M 64M <$dir/data"

say "it comes back, and makes the copies that it has missed"
start_sheep 2
recovers() { dog node recovery -r | grep -qE "^2 127.0.0.1:${port}2 [0-9]+ 2 [0-9]+ [0-9]+$"; }
# It may be quick.
recovers_or_has() { recovers || health_is ok; }
wait_for 20 "a sheep that recovers" recovers_or_has
run_line 'dog cluster health || true'
run dog node recovery
run dog node recovery -P -p "${port}2"
idle || die "the bar ended too early: $(dog node recovery)"
wait_for 20 "a healthy cluster" health_is ok
expect 0 '^ok$' dog cluster health
expect 0 'Compared [0-9]+ MB of 33 objects in 99 copies' dog vdi check -v disk
expect 0 '^finish check&repair disk$' dog cluster check

say "two die: writes wait, reads go on"
kill_sheep 1
wait_for 20 "two members" members_are 2
kill_sheep 2
wait_for 20 "a cluster that waits" health_is blocked
run_line 'dog cluster health || echo "exit code $?"'
expect 2 "^    start again: .*127.0.0.1:${port}2" dog cluster health
cmp <(dog vdi read disk 64M 64M) "$dir/data" || die "the data are not the same on the last sheep"

say "all come back"
start_sheep 2
start_sheep 1
wait_for 60 "a healthy cluster" health_is ok

say "one is stopped and does not answer"
run kill -STOP "$(sheep_pid 1)"
expect 2 "^node 1 \(127.0.0.1:${port}1\) is a member and does not answer: .*accepts connections but does not answer" dog cluster health
expect 2 '^Node 1 does not answer' dog node recovery
run kill -CONT "$(sheep_pid 1)"
wait_for 20 "a healthy cluster" health_is ok
no_panics
