#!/usr/bin/env bash
# What a sheep of four held is copied to others when it has been away for too long; an operator empties another one; recovery is
# switched off and on; and after the loss of two of three for good the cluster goes on with what is there.
. "$(dirname "$0")/../lib.sh"
scenario_with_sheep 0
choose_ports

health_is() { [[ $(dog cluster health -r | head -1) == "$1" ]]; }
health_says() { grep -qE -- "$1" <<<"$(dog cluster health)"; }
idle() { [[ $(dog node recovery | wc -l) == 2 ]]; }
behind() { ! idle; }
whole() {
    expect 0 'is fine, no object is missing' dog vdi check -e disk
    cmp <(dog vdi read disk 0 48M) "$dir/data" || die "the data are not the same"
}
used() { dog node info -r | awk -v id="$1" '$1 == id { print $3 }'; }
# Two copies of 48 MiB, and none that is not needed any more.
is_tidy() { (($(used Total) == 2 * 48 << 20)); }

chapter "A dead sheep is given up"
for i in 0 1 2 3; do start_sheep "$i"; done
wait_for 20 "4 members" members_are 4
run dog cluster format --copies=2 --out-time 3s
wait_for 20 "a running cluster" cluster_runs
expect 0 '^A node that is down is given up after 3s$' dog cluster out-time
# Many small objects: how many are on which node is chance.
run dog vdi create -z 20 disk 256M
head -c 48M /dev/urandom >"$dir/data"
run_line "dog vdi write disk 0 48M <$dir/data"
kill_sheep 3
wait_for 20 "a degraded cluster that tells when" health_says "^node 127.0.0.1:${port}3 .* is down .*given up after 3s"
run_line 'dog cluster health || true'
wait_for 60 "a cluster that has given the sheep up" health_says "^node 127.0.0.1:${port}3 .*given up"
wait_for 60 "copies that are made anew" idle
wait_for 60 "a healthy cluster" health_is ok
run dog cluster health
whole
start_sheep 3
wait_for 20 "4 members" members_are 4
wait_for 60 "a sheep that has its share again" idle
wait_for 20 "a healthy cluster" health_is ok
whole

chapter "An operator empties one"
wait_for 60 "no more copies than there should be" is_tidy
full=$(used 2)
run dog node out 2
wait_for 60 "copies elsewhere" health_says "^node 127.0.0.1:${port}2 .*holds nothing that is needed"
emptied() { (($(used 2) == 0)); }
wait_for 60 "an emptied disk, which used $full" emptied
run dog node info
whole
expect 0 'is out already' dog node out "127.0.0.1:${port}2"
run dog node in "127.0.0.1:${port}2"
# Not by the same objects: as few as can be are moved, each time.
filled() { (($(used 2) > full / 4)); }
wait_for 60 "a disk that is used again, as $full were before" filled
wait_for 60 "copies that are in their places" idle
whole

chapter "Recovery is bounded, and switched off and on"
expect 0 '^max \(0\), interval \(0\)$' dog node recovery get-throttle
run dog node recovery set-throttle 100 1000
expect 0 '^max \(100\), interval \(1000\)$' dog node recovery get-throttle
expect 0 '^max \(0\), interval \(0\)$' dog node recovery get-throttle -p "${port}1"
run dog cluster recover throttle 500M
expect 0 '^Recovery throttle: 524288000 bytes' dog cluster recover throttle -p "${port}1"
expect 0 '^Cluster recovery: disable$' dog cluster recover disable
expect 0 '^Cluster status: running, auto-recovery disabled$' dog cluster info
kill_sheep 1
wait_for 20 "3 members" members_are 3
expect 1 'not given up by itself, for recovery is disabled' dog cluster health
start_sheep 1
wait_for 20 "4 members" members_are 4
wait_for 20 "a sheep that stays behind" behind
expect 0 '^Cluster recovery: enable$' dog cluster recover enable
expect 0 '^Cluster status: running, auto-recovery enabled$' dog cluster info
wait_for 60 "a sheep that has caught up" idle
whole

chapter "Two of three are gone for good"
run dog node out -f 3
wait_for 60 "a sheep that is needed no more" health_says "^node 127.0.0.1:${port}3 .*holds nothing that is needed"
kill_sheep 3
wait_for 20 "3 members" members_are 3
run dog cluster out-time 0
run dog vdi create trio 64M --copies=3
run_line "dog vdi write trio 0 32M <$dir/data"
expect 1 'Cluster is running/halted and cannot be force recovered' dog cluster recover force -f
kill_sheep 1 2
rm -rf "${dir:?}/1" "${dir:?}/2"
waits() { dog cluster info | grep -q 'Waiting for other nodes'; }
wait_for 20 "one member" members_are 1
waits || die "the cluster does not wait: $(dog cluster info)"
expect 0 "^The cluster waits for .*127.0.0.1:${port}[12] \(down since epoch" dog cluster recover force
grep -qE '^The newest copies of [1-9][0-9]* of [0-9]+ placement groups are on nodes that are not there: ' <<<"$output" || die "said: $output"
grep -q 'Nothing was changed' <<<"$output" || die "said: $output"
waits || die "it does not wait any more, though nobody said yes"
expect 0 'The cluster goes on' dog cluster recover force -f
wait_for 20 "a running cluster" cluster_runs
cmp <(dog vdi read trio 0 32M) <(head -c 32M "$dir/data") || die "what had a copy here is not the same"
run_line "head -c 4M $dir/data | dog vdi write trio 40M 4M"
run dog vdi create after 16M --copies=1
run_line 'dog cluster health || true'
no_panics
