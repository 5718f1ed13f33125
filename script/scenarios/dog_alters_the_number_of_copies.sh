#!/usr/bin/env bash
# A VDI gets another number of copies: with all its data, by refusing while a client uses it, and by leaving nothing behind
# however often it is interrupted. Where its copies belonged at earlier epochs is told.
. "$(dirname "$0")/../lib.sh"
need_packages libnbd-bin python3 python3-libnbd
scenario_with_sheep 3 2

head -c 48M /dev/urandom >"$dir/data"
run dog vdi create disk 64M
run_line "dog vdi write disk 0 48M <$dir/data"
run dog vdi setattr disk owner me
holders() { dog vdi object location -i "$1" disk | grep -c 'has the object'; }
same_data() { cmp <(dog vdi read disk 0 48M) "$dir/data"; }
[[ $(holders 3) == 2 ]] || die "not two copies at first: $(dog vdi object location -i 3 disk)"

say "more copies"
expect 0 "disk's redundancy level is set to 3, the old one was 2." dog vdi alter-copy -f -c 3 disk
expect 0 '^= disk 0 67108864 50331648 0 [0-9]+ [0-9a-f]+ 3 ' dog vdi list -r
[[ $(dog vdi list -r | wc -l) == 1 ]] || die "something is left: $(dog vdi list -r)"
for index in 0 3 11; do
    [[ $(holders $index) == 3 ]] || die "not three copies: $(dog vdi object location -i $index disk)"
done
same_data || die "the data are not the same"
expect 0 '^me$' dog vdi getattr disk owner
expect 1 'already set to 3, nothing changed' dog vdi alter-copy -f -c 3 disk

say "while a client has it open it stays as it is"
PATH=/usr/bin:/bin nbdsh -u "$(nbd_uri disk 1)" -c 'open("'"$dir"'/open", "w").close(); import time; time.sleep(60)' &
client=$!
own $client
wait_for 20 "the client" test -e "$dir/open"
expect 1 "it is in use through 127.0.0.1:${port}1 .*nothing was changed" dog vdi alter-copy -f -c 1 disk
[[ $(dog vdi list -r) == '= disk 0 '*' 3  22' ]] || die "it was changed: $(dog vdi list -r)"
kill $client
wait $client || true

say "dog is killed in the middle, again and again"
for i in 1 2 3; do
    show dog vdi alter-copy -f -c 1 disk
    dog vdi alter-copy -f -c 1 disk &
    dog=$!
    own $dog
    copying() { dog vdi list -r | grep -q 'dog-alter-copy-'; }
    wait_for 20 "a copy that is being made" copying
    kill -9 $dog
    wait $dog || true
    same_data || die "the data are not the same after interruption $i"
    expect 0 '^= disk 0 67108864 ' dog vdi list -r disk
done
expect 0 "disk's redundancy level is set to 1" dog vdi alter-copy -f -c 1 disk
same_data || die "the data are not the same in one copy"
[[ $(dog vdi list -r | wc -l) == 1 ]] || die "something is left: $(dog vdi list -r)"
[[ $(holders 3) == 1 ]] || die "not one copy: $(dog vdi object location -i 3 disk)"

say "the room of what was replaced comes back"
used_is_small() { (($(dog node info -r | awk '/^Total/ {print $3}') < 90 << 20)); }
wait_for 60 "the end of the old copies" used_is_small

say "others get the cluster's default, which can be changed"
expect 0 "The cluster's redundancy level is set to 3, the old one was 2." dog cluster alter-copy -f -c 3
run dog vdi create later 8M
expect 0 '^= later 0 8388608 0 0 [0-9]+ [0-9a-f]+ 3 ' dog vdi list -r later

say "where copies belonged at each epoch"
places() { dog vdi track -i 3 disk | awk '/at epoch/ {epoch = $6} /^[0-9.]+:/ {print epoch, $0}'; }
before=$(places)
start_sheep 3
wait_for 20 "four members" members_are 4
kill_sheep 3
wait_for 20 "three members" members_are 3
run dog vdi track -i 3 disk
[[ $(places | cut -d, -f1 | uniq | tr '\n' ' ') == '3 2 1 ' ]] || die "not three epochs: $(places)"
[[ $(places | grep '^1,') == "$before" ]] || die "epoch 1 was: $before"
no_panics
