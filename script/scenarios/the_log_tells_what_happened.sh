#!/usr/bin/env bash
# A sheep's log is enough to learn what happened in a bad night: which nodes went and came, what operators ordered through whom, how repair
# went, who asked a sheep to stop. Each thing is told once; of a cluster that is well nothing is told, whatever its load.
. "$(dirname "$0")/../lib.sh"
scenario_with_sheep 0
choose_ports

node() { echo "127.0.0.1:${port}$1"; }
# times SHEEP PATTERN: in how many lines of its log.
times() { grep -cE -- "$2" "$dir/$1/sheep.log" || true; }
told() { (($(times "$1" "$2") == ${3:-1})); }
# tells SHEEP PATTERN [TIMES]: its log comes to say so, as often, and no more often.
tells() {
    wait_for 60 "the log of sheep $1 to say '$2' ${3:-1} times" told "$@"
}
idle() { [[ $(dog node recovery | wc -l) == 2 ]]; }
behind() { ! idle; }
lines() { cat "$dir"/[0-3]/sheep.log | wc -l; }
write() { run_line "dog vdi write disk $1 8M <$dir/data"; }

chapter "The beginning"
for i in 0 1 2 3; do start_sheep "$i"; done
wait_for 20 "4 members" members_are 4
run dog cluster format --copies=3
wait_for 20 "a running cluster" cluster_runs
tells 1 " INFO .* sheepdog daemon \(version .*\) started, node: $(node 1), zone: 1, store: $dir/1, size_bytes: [1-9].* cluster: $dir/cluster.local, pid: $(sheep_pid 1)$"
tells 1 ' INFO .* this node has joined the cluster, epoch: 0, version: [0-9]+, up: 2$'
tells 1 " INFO .* a node has joined that was not here before; .* node: $(node 3), .* up: 4$"
tells 1 "the cluster has been formatted; .* through: $(node 0), epoch: 1, "
run dog vdi create -z 20 disk 64M
head -c 8M /dev/urandom >"$dir/data"
write 0

chapter "A cluster that is well says nothing"
before=$(lines)
for at in 8M 16M 24M 0; do write "$at"; done
expect 0 'is fine' dog vdi check -e disk
run dog cluster health
(($(lines) == before)) || die "something was logged: $(tail -n 3 "$dir"/[0-3]/sheep.log)"

chapter "A sheep dies and comes back"
kill_sheep 3
tells 1 " WARN .* a node is down: stopped, died or cut off; given up after 600s, unless it is back before, node: $(node 3), epoch: 2, version: [0-9]+, up: 3$"
expect 0 '^[0-9].* 2 \[' dog cluster info
write 32M
start_sheep 3
tells 1 " INFO .* a node is up again; it fetches what it has missed, node: $(node 3), away: [0-9.]+m?s, epoch: 3, .* up: 4$"
tells 3 ' INFO .* this node catches up, for it has just joined, pgs: [1-9]'
tells 3 ' INFO .* this node has caught up; it has all its copies, pgs: [1-9][0-9]*, objects: [1-9][0-9]*, bytes: [1-9][0-9]*, took: '
told 1 'catch' 0 || die "sheep 1 lacks nothing"

chapter "Operators"
run dog node out "$(node 2)"
tells 1 "an operator has put a node out; .* node: $(node 2), through: $(node 0), "
tells 3 'this node catches up, for node .*:[0-9]+2 is out, pgs: '
wait_for 60 "copies elsewhere" idle
run dog node in "$(node 2)" -p "${port}3"
tells 1 "an operator has taken a node in; .* node: $(node 2), through: $(node 3), "
tells 2 'this node catches up, for it is in again, pgs: '
tells 2 'this node has caught up'
run dog cluster recover throttle 500M
tells 1 "an operator bounds what each node fetches for recovery in a second, through: $(node 0), rate_bytes: 524288000, "
run dog node recovery set-throttle 100 1000 -p "${port}1"
tells 1 'an operator bounds the objects that this node begins to fetch, objects_max: 100, interval_ms: 1000$'
run dog cluster recover disable
run dog cluster recover disable
tells 1 " WARN .* an operator has disabled recovery; .* through: $(node 0), "
kill_sheep 3
tells 1 "a node is down: .* not given up while recovery is disabled, node: $(node 3), "
start_sheep 3
tells 3 " WARN .* this node lacks copies, for it has just joined; catching up waits: recovery is disabled \('dog cluster recover enable'"
wait_for 20 "a sheep that stays behind" behind
run dog cluster recover enable
tells 1 "an operator has enabled recovery; .* through: $(node 0), "
wait_for 60 "a sheep that has caught up" idle
tells 3 'this node has caught up' "$(times 3 'this node (catches up|lacks copies), for ')"

chapter "Away for too long"
run dog cluster out-time 2s
tells 1 'an operator has changed how long a node may be down: given up after 2s, unless it is back before, through: '
kill_sheep 3
tells 1 " WARN .* a node has been down for 2s and is out; what it held is copied to others, node: $(node 3), told_by: 127"
start_sheep 3
tells 1 "a node is up again; it had been given up and gets its share of the copies again, node: $(node 3), "
tells 1 "a node is down: .* node: $(node 3), " 3
run dog cluster out-time 10m
wait_for 60 "copies that are in their places" idle

chapter "Ends in order"
pid=$(sheep_pid 3)
run kill -TERM "$pid"
wait_for 20 "the end of sheep 3" ended "$pid"
tells 3 ' INFO .* this sheep stops in order, asked by the signal SIGTERM, unanswered: 0$'
tells 3 ' INFO .* this sheep has ended in order: shutdown$'
tells 1 "a node is down: .* node: $(node 3), " 4
run dog node kill "$(node 2)"
tells 2 "this sheep stops in order, asked by a client of this sheep \('dog node kill'\), "
pids=("$(sheep_pid 0)" "$(sheep_pid 1)")
run dog cluster shutdown -p "${port}0"
for pid in "${pids[@]}"; do wait_for 20 "the end of all sheep" ended "$pid"; done
tells 1 "an operator has ordered all sheep to stop, through: $(node 0), "
tells 1 "this sheep stops in order, asked by an order to the whole cluster \('dog cluster shutdown'\), "
tells 1 'this sheep has ended in order: shutdown$'
show "the log of sheep 1"
cat "$dir/1/sheep.log"
show "the log of sheep 3"
cat "$dir/3/sheep.log"
no_panics
