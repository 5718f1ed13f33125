#!/usr/bin/env bash
# What -P of create and clone promises: all objects are there and hold what they should; and -z: objects of another size.

. "$(dirname "$0")/../lib.sh"
need_packages qemu-utils qemu-block-extra
scenario_with_sheep 2 1

used_bytes() { dog node info -r | awk '!/^Total/ {sum += $3} END {print sum + 0}'; }
used_at_least() { (($(used_bytes) >= $1)); }
used_at_most() { (($(used_bytes) <= $1)); }
mib=$((1 << 20))
# Own and shared bytes, as listed.
listed() { dog vdi list -r "$1" | awk '$3 == 0 {print $5, $6}'; }
objects() { dog vdi object map "$@" | tail -n +2 | wc -l; }

# ---- create -P ------------------------------------------------------------------------------------------------------

run dog vdi create thin 40M
[[ $(listed thin) == "0 0" && $(objects thin) == 0 ]] || die "a thin VDI has $(listed thin)"
run dog vdi create -P thick 41M
# The last object is a partial one.
[[ $(listed thick) == "$((44 * mib)) 0" && $(objects thick) == 11 ]] || die "thick has $(listed thick)"
wait_for 10 "41 MiB to be taken" used_at_least $((41 * mib))
run_line "dog vdi read thick | cmp - <(head -c 41M /dev/zero)"
run_line "qemu-img map --output=json '$(nbd_uri thick)'"
! qemu-img map --output=json "$(nbd_uri thick)" | grep -q '"data": false' || die "thick has holes"
expect 0 'finish check&repair thick' dog vdi check thick

# ---- clone -P -------------------------------------------------------------------------------------------------------

run_line "head -c 8M /dev/urandom | tee '$dir/content' | dog vdi write thin 4M 8M"
run dog vdi snapshot -s s thin
before=$(used_bytes)
run dog vdi clone -s s thin shares
[[ $(listed shares) == "0 $((8 * mib))" ]] || die "a clone has $(listed shares)"
used_at_most $((before + mib)) || die "a clone took $(($(used_bytes) - before)) bytes"
run dog vdi clone -s s -P thin full
[[ $(listed full) == "$((8 * mib)) 0" ]] || die "a clone of everything has $(listed full)"
wait_for 10 "8 MiB more to be taken" used_at_least $((before + 8 * mib))
for vdi in shares full; do
    run_line "dog vdi read $vdi 4M 8M | cmp - '$dir/content'"
    run_line "dog vdi read $vdi 0 4M | cmp - <(head -c 4M /dev/zero)"
done
run dog vdi delete thin
run dog vdi delete -s s thin
run dog vdi delete shares
run_line "dog vdi read full 4M 8M | cmp - '$dir/content'"
wait_for 20 "no more than thick and full to be left" used_at_most $((41 * mib + 9 * mib))

# ---- -z -------------------------------------------------------------------------------------------------------------

for shift in 20 23 31; do
    run dog vdi create -z "$shift" "z$shift" 5G
    run_line "dog vdi write z$shift $((3 * mib - 1)) 8M <'$dir/content'"
    run_line "dog vdi read z$shift $((3 * mib - 1)) 8M | cmp - '$dir/content'"
    first=$(((3 * mib - 1) >> shift)) last=$(((11 * mib - 2) >> shift))
    [[ $(objects "z$shift") == $((last - first + 1)) ]] || die "z$shift has $(objects "z$shift") objects"
    [[ $(dog vdi list -r "z$shift" | awk '{print $NF}') == "$shift" ]] || die "z$shift has another object size"
done
run dog vdi create -z 21 -P z21 5M
[[ $(listed z21) == "$((6 * mib)) 0" ]] || die "z21 has $(listed z21)"
expect 1 'at least 20' dog vdi create -z 19 x 1G
expect 1 'at most 31' dog vdi create -z 32 x 1G
for vdi in thick full z20 z21 z23 z31; do run dog vdi delete "$vdi"; done
wait_for 20 "all space to be given back" used_at_most 0
no_panics
