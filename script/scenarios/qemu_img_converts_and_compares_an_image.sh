#!/usr/bin/env bash
# qemu-img imports a qcow2 image into a thin VDI, finds it identical through every sheep, and exports it again.
. "$(dirname "$0")/../lib.sh"
need_packages qemu-utils qemu-block-extra
scenario_with_sheep 3

run_line "head -c 30000000 /dev/urandom >$dir/in.raw; truncate -s 256M $dir/in.raw"
run qemu-img convert -f raw -O qcow2 "$dir/in.raw" "$dir/in.qcow2"
run dog vdi create disk 256M
run qemu-img convert -n -p -f qcow2 -O raw "$dir/in.qcow2" "$(nbd_uri disk 0)"
for sheep in 0 1 2; do
    expect 0 'Images are identical' qemu-img compare -f raw -F raw "$dir/in.raw" "$(nbd_uri disk "$sheep")"
done
used=$(dog vdi list -r disk | cut -d' ' -f5)
((used <= 48 << 20)) || die "30 MB of data use $used bytes"
run qemu-img convert -f raw -O raw "$(nbd_uri disk 1)" "$dir/out.raw"
run cmp "$dir/in.raw" "$dir/out.raw"
run_line "dog vdi read disk | cmp - $dir/in.raw"

run dog vdi resize disk 300M
expect 0 'virtual size: 300 MiB' qemu-img info "$(nbd_uri disk 2)"
expect 1 'Content mismatch at offset|Images .*differ|mismatch' qemu-img compare -f raw -F raw "$dir/in.qcow2" "$(nbd_uri disk 0)"
no_panics
