#!/usr/bin/env bash
# A node of four is put out: dog says that it may not be stopped yet, then that it may, and nothing is missed when it has gone for good.
. "$(dirname "$0")/../lib.sh"
scenario_with_sheep 4 2

verdict() { dog node safe-to-stop -r "$@" | head -1; }
is_safe() { dog node safe-to-stop "$@"; }
health_is() { [[ $(dog cluster health -r | head -1) == "$1" ]]; }
nobody_catches_up() { [[ -z $(dog node recovery -r) ]]; }
leaving=127.0.0.1:${port}3

chapter "Nobody is dispensable who stores something"
# Small objects: each node has many. A second pool has one copy of each, so only complete copies elsewhere will do.
run dog vdi create -z 20 twice 128M
run dog vdi create -z 20 --copies=1 once 64M
head -c 96M /dev/urandom >"$dir/data"
run_line "dog vdi write twice 0 96M <$dir/data"
run_line "dog vdi write once 0 48M <$dir/data"
expect 7 '^lost$' dog node safe-to-stop 3
expect 7 "^    for good: dog node out $leaving, and wait$" dog node safe-to-stop 3
expect 7 '^lost$' dog node safe-to-stop --wait 3
expect 1 'is no node of this cluster' dog node safe-to-stop 127.0.0.1:1
expect 7 '"verdict": "lost"' dog node safe-to-stop --json 3

chapter "One is put out, slowly"
run dog cluster recover disable
expect 0 'is out\.' dog node out "$leaving"
expect 0 '^   3 .*   out$' dog node list
expect 0 '"out": "operator"' dog node list --json
expect 0 '	out$' dog node info
[[ $(dog node list -r | tail -1) == "3 $leaving "*" 3" ]] || die "the raw list is another one: $(dog node list -r)"
expect 7 '^lost$' dog node safe-to-stop "$leaving"
expect 7 'dog cluster recover enable' dog node safe-to-stop --wait "$leaving"
run dog cluster recover throttle 1M
run dog cluster recover enable
[[ $(verdict "$leaving") == lost ]] || die "copies are not made so soon: $(verdict "$leaving")"
expect 124 '^Waiting: .* placement groups have no complete copy that is up but on' timeout 2 dog node out --wait "$leaving"
run_line "dog node safe-to-stop $leaving || echo \"exit code \$?\""
run dog cluster recover throttle 0

chapter "The answer is yes, of all sheep"
run timeout 120 dog node safe-to-stop --wait "$leaving"
for i in 0 1 2 3; do expect 0 '^safe$' dog node safe-to-stop -p "$port$i" "$leaving"; done
expect 0 '^safe$' dog node out --wait "$leaving"
expect 7 '^lost$' dog node safe-to-stop "$leaving" 2

chapter "A sheep that says nothing may be all that is left"
run kill -STOP "$(sheep_pid 1)"
expect 2 '^unknown$' dog node safe-to-stop "$leaving"
run kill -CONT "$(sheep_pid 1)"
wait_for 30 "an answer of all" is_safe "$leaving"

chapter "It is stopped, and gone for good"
run dog node kill "$leaving"
rm -rf "${dir:?}/3"
health_is ok || die "$(dog cluster health)"
expect 0 '^safe$' dog node safe-to-stop "$leaving"
for i in 0 1 2; do
    cmp <(dog vdi read -p "$port$i" twice 0 96M) "$dir/data" || die "the data are not the same through sheep $i"
    cmp <(dog vdi read -p "$port$i" once 0 48M) <(head -c 48M "$dir/data") || die "single copies are not the same through sheep $i"
done
expect 0 'is fine, no object is missing' dog vdi check -e twice
expect 0 'is fine, no object is missing' dog vdi check -e once
expect 0 '^finish check&repair once$' dog cluster check
run_line "head -c 4M $dir/data | dog vdi write twice 100M 4M"

chapter "Too few zones for all copies"
expect 0 '^safe$' timeout 120 dog node out -f --wait 2
expect 6 'placement groups keep 1 copy without node .*, not the 2 that VDIs want' timeout 120 dog node out -f --wait 1
expect 6 '^short$' dog node safe-to-stop 1 2
for i in 1 2; do run dog node in "$i"; done
wait_for 60 "all copies in their places" nobody_catches_up

chapter "What is down takes its part of the answer along"
expect 7 '^lost$' dog node safe-to-stop 2
kill_sheep 2
wait_for 20 "two members" members_are 2
expect 7 'none of it on' dog node safe-to-stop "$leaving"
no_panics
