#!/usr/bin/env bash
# A store that is started once beside another cluster.local, or none, keeps all that is on it, and counts again at home.
. "$(dirname "$0")/../lib.sh"
scenario_with_sheep 3 3
no_sheep_at() { [[ -z $(sheep_pid "$1") ]]; }
is_well() { dog cluster health | grep -q '^ok'; }

run dog vdi create alice 16M
head -c 16M /dev/urandom >"$dir/content"
run dog vdi write alice <"$dir/content"

say "beside no cluster: it would begin a new one"
run dog node kill -p "${port}1" -l
wait_for 20 "an ended sheep" no_sheep_at 1
mkdir "$dir/else"
mv "$dir/1" "$dir/else/1"
expect 1 "belongs to another cluster" sheep -c local "$dir/else/1" -z 1 -p "${port}8"

say "beside another cluster, formatted as well"
run sheep -c local "$dir/else/2" -z 2 -p "${port}9" --disk-size 64M
run dog cluster format -c 1 -p "${port}9"
expect 1 "belongs to another cluster" sheep -c local "$dir/else/1" -z 1 -p "${port}8"
run dog node kill -p "${port}9" -l

say "and at home again"
mv "$dir/else/1" "$dir/1"
run sheep -c local "$dir/1" -z 1 -p "${port}1"
wait_for 20 "three members" members_are 3
wait_for 30 "health" is_well
for i in 0 1 2; do
    dog vdi read alice -p "$port$i" | cmp - "$dir/content" || die "sheep $i reads something else"
done
expect 0 'alice' dog cluster check
no_panics
