#!/usr/bin/env bash
# Sheep whose directories lie in different places form clusters of their own.
. "$(dirname "$0")/../lib.sh"
scenario_with_sheep 2 2

mkdir "$dir/other"
run sheep -c local "$dir/other/5" -z 5 -p "${port}5"
run sheep -c "local:$dir/third" "$dir/6" -z 6 -p "${port}6"
for other in 5 6; do
    expect 0 'Waiting for cluster to be formatted' dog cluster info -p "$port$other"
    run dog cluster format --copies=1 -p "$port$other"
    wait_for 20 "a running cluster" sees "$other" 1
done
run dog vdi create here 4M
run dog vdi create there 4M -p "${port}5"
expect 0 '^= here ' dog vdi list -r
[[ $output != *there* ]] || die "a VDI of the other cluster is listed"
expect 0 '^= there ' dog vdi list -r -p "${port}5"
[[ $(dog vdi list -r -p "${port}6") == '' ]] || die "the third cluster has a VDI"
members_are 2 || die "the first cluster has $(members) members"
no_panics
