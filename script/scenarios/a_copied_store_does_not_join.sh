#!/usr/bin/env bash
# A copy of a store does not join beside its original; one that was moved does, and then the old place is the copy.
. "$(dirname "$0")/../lib.sh"
scenario_with_sheep 2 2
no_sheep_at() { [[ -z $(sheep_pid "$1") ]]; }

run dog vdi create alice 16M
head -c 16M /dev/urandom >"$dir/content"
run dog vdi write alice <"$dir/content"

say "a copy beside its original is refused, where it was typed"
cp -a "$dir/1" "$dir/copy"
expect 1 "in use by node 127.0.0.1:${port}1: one of the two is a copy" sheep -c local "$dir/copy" -z 7 -p "${port}7"
wait_for 20 "an ended sheep" no_sheep_at copy
members_are 2 || die "the copy is a member"
expect 0 '^ok' dog cluster health
dog vdi read alice | cmp - "$dir/content"

say "a store that moves is welcome, and its old place is refused"
rm -r "$dir/copy"
run dog node kill -p "${port}1" -l
wait_for 20 "one member" members_are 1
wait_for 20 "an ended sheep" no_sheep_at 1
cp -a "$dir/1" "$dir/old"
mv "$dir/1" "$dir/moved"
run sheep -c local "$dir/moved" -z 1 -p "${port}7"
wait_for 20 "two members" members_are 2
expect 1 "in use by node 127.0.0.1:${port}7: " sheep -c local "$dir/old" -z 1 -p "${port}1"
members_are 2 || die "the old place is a member"
dog vdi read alice | cmp - "$dir/content"

say "and when the newer one is down, what was written since is not forgotten for an older one, however often it is tried"
head -c 16M /dev/urandom >"$dir/content"
run dog vdi write alice <"$dir/content"
run dog node kill -p "${port}7" -l
wait_for 20 "one member" members_are 1
wait_for 20 "an ended sheep" no_sheep_at moved
for round in 1 2 3; do
    expect 1 "is an older copy of the one that node 127.0.0.1:${port}7 was started with last" sheep -c local "$dir/old" -z 1 -p "${port}$round"
    wait_for 20 "an ended sheep" no_sheep_at old
done
members_are 1 || die "the older copy is a member"
run sheep -c local "$dir/moved" -z 1 -p "${port}7"
wait_for 20 "two members" members_are 2
is_well() { dog cluster health | grep -q '^ok'; }
run dog node out "127.0.0.1:${port}1"
wait_for 30 "health" is_well
dog vdi read alice -p "${port}7" | cmp - "$dir/content"
no_panics
