#!/usr/bin/env bash
# dog cluster check compares all copies of all images while clients write, discard, snapshot and delete: it finds nothing wrong where
# nothing is, and disturbs nobody.
. "$(dirname "$0")/../lib.sh"
need_packages fio libnbd-bin
scenario_with_sheep 3

for name in loaded quiet; do
    run dog vdi create $name 128M
    head -c 24M /dev/urandom | dog vdi write $name
    run dog vdi snapshot -s first $name
    head -c 8M /dev/urandom | dog vdi write $name
done
run dog vdi clone -s first quiet clone
expect 0 '^fix snapshot quiet \(id: 1, tag: "first"\)$' dog cluster check
expect 0 '^Compared [0-9]+ MB of [0-9]+ objects in [0-9]+ copies$' dog cluster check -v

cd "$dir"
show fio --ioengine=nbd "--uri=$(nbd_uri loaded)" --rw=randwrite
fio --name=load --ioengine=nbd "--uri=$(nbd_uri loaded)" --rw=randwrite --bs=64k --offset=32M --size=32M --iodepth=8 --time_based \
    --runtime=600 --verify=crc32c --verify_backlog=64 >"$dir/fio.log" 2>&1 &
load=$!
own $load
# Whole objects come and go.
for _ in {1..12}; do
    head -c 16M /dev/urandom | dog vdi write quiet 64M
    PATH=/usr/bin:/bin nbdsh -u "$(nbd_uri quiet 1)" -c 'h.trim(16 << 20, 64 << 20)'
    dog vdi snapshot -s passing quiet
    dog vdi delete -s passing quiet
done >"$dir/churn.log" 2>&1 &
churn=$!
own $churn
rounds=0
until ended $churn; do
    rounds=$((rounds + 1))
    dog cluster check >"$dir/check" 2>&1 || die "round $rounds failed: $(cat "$dir/check")"
    # Other lines than these tell of something wrong.
    ! grep -vE '^(fix (vdi|snapshot) |finish check&repair |VDI [a-z]+ \([0-9a-f]+\) was deleted meanwhile$)' "$dir/check" \
        || die "round $rounds found something"
done
say "$rounds rounds"
wait $churn || die "what was written and discarded meanwhile failed: $(cat "$dir/churn.log")"
! ended $load || die "the load has ended: $(cat "$dir/fio.log")"
kill -INT $load
wait $load || true
grep -q 'err= 0' "$dir/fio.log" || die "the load failed: $(cat "$dir/fio.log")"
expect 0 '^finish check&repair loaded$' dog cluster check
no_panics
