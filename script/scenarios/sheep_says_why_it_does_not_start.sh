#!/usr/bin/env bash
# A sheep that cannot start ends with 1 and says why, where it was typed; the sheep that run are not disturbed.
. "$(dirname "$0")/../lib.sh"
scenario_with_sheep 1 1
no_sheep_at() { [[ -z $(sheep_pid "$1") ]]; }

say "options"
expect 1 "Invalid port number '70000'" sheep -p 70000 "$dir/x"
expect 1 "Invalid port number '42a'" sheep -p 42a "$dir/x"
expect 1 "Invalid zone id '-1': must be an integer between 0 and 4294967295" sheep -z -1 "$dir/x"
expect 1 "Options '-g' and '-V' can not be both specified" sheep -g -V 5 "$dir/x"
expect 1 "[Dd]river.*'nosuch'" sheep -c nosuch "$dir/x"
expect 1 '.' sheep --nosuch "$dir/x"
expect 1 '.' sheep -p
expect 1 "Invalid log level 'loud'" sheep -l level=loud "$dir/x"
[[ ! -e $dir/x ]] || die "wrong options left a directory behind"
expect 0 '^Sheepdog daemon version' sheep -v
expect 0 '  -p, --port' sheep -h

say "a directory in use, a port in use"
expect 1 "another sheep.*$dir/0" sheep -c local "$dir/0" -z 0 -p "${port}1"
expect 1 "${port}0" sheep -c local "$dir/1" -z 1 -p "${port}0"
[[ ! -e $dir/1/config && ! -e $dir/1/objects ]] || die "a sheep that found its port in use left a store behind"
members_are 1 || die "a sheep that could not start is a member"

say "directories of other formats and versions, and none at all"
mkdir "$dir/c-store" "$dir/other"
head -c 40 /dev/zero | tr '\0' '\1' >"$dir/c-store/config"
expect 1 'original Sheepdog' sheep -c local "$dir/c-store" -z 2 -p "${port}2"
echo 'sheepdog store 99' >"$dir/other/config"
expect 1 'another version' sheep -c local "$dir/other" -z 2 -p "${port}2"
expect 1 '.' sheep -c local "/proc/nothing/here" -z 2 -p "${port}2"
touch "$dir/file"
expect 1 '.' sheep -c local "$dir/file" -z 2 -p "${port}2"
truncate -s 1M "$dir/small"
expect 1 '.' sheep -c local "$dir/3,$dir/small" -z 3 -p "${port}3"
head -c 67108864 /dev/urandom >"$dir/foreign"
cp "$dir/foreign" "$dir/foreign.before"
expect 1 '.' sheep -c local "$dir/4,$dir/foreign" -z 4 -p "${port}4"
cmp "$dir/foreign" "$dir/foreign.before" || die "a disk full of something else was overwritten"

say "what is begun anew is said: a path may be mistyped"
expect 0 "^$dir/5 is new: an empty store is begun there, for the cluster in $dir/cluster.local\$" sheep -c local "$dir/5" -z 5 -p "${port}5"
wait_for 20 "two members" members_are 2
run dog node kill -p "${port}5" -l
wait_for 20 "one member" members_are 1
wait_for 20 "an ended sheep" no_sheep_at 5
said=$(sheep -c local "$dir/5" -z 5 -p "${port}5" 2>&1)
[[ -z $said ]] || die "a sheep that comes back says: $said"
wait_for 20 "two members" members_are 2
run dog node kill -p "${port}5" -l
wait_for 20 "one member" members_are 1
expect 0 "^$dir/typo/0 is new: an empty store is begun there, and a new cluster in $dir/typo/cluster.local\$" sheep -c local "$dir/typo/0" -z 0 -p "${port}6"
grep -q "is new: an empty store is begun there, and a new cluster" "$dir/typo/0/sheep.log" || die "its log says nothing of it"

expect 0 'running' dog cluster info
members_are 1 || die "a sheep that could not start is a member"
no_panics
