#!/usr/bin/env bash
# Images go into VDIs and come out again in several formats, of working VDIs and of snapshots; nothing is changed by an image
# that does not fit.
. "$(dirname "$0")/../lib.sh"
need_packages qemu-utils qemu-block-extra python3-libnbd
scenario_with_sheep 3

holds() { dog vdi read ${3:+-s "$3"} "$2" | cmp - "$1" || die "$2 ${3:-} does not hold $1"; }

run_line "head -c 9000000 /dev/urandom >$dir/in.raw; truncate -s 48M $dir/in.raw"
run_line "head -c 100000 /dev/urandom | dd of=$dir/in.raw bs=1M seek=40 conv=notrunc status=none"

chapter "Raw"
run dog vdi import "$dir/in.raw" disk
holds "$dir/in.raw" disk
used=$(dog vdi list -r disk | cut -d' ' -f5)
((used <= 16 << 20)) || die "9 MB of data use $used bytes"
run dog vdi snapshot -s one disk
head -c 5M /dev/urandom >"$dir/piece"
run_line "dog vdi write disk 2M 5M <$dir/piece"
cp "$dir/in.raw" "$dir/now.raw"
dd if="$dir/piece" of="$dir/now.raw" bs=1M seek=2 conv=notrunc status=none
run dog vdi export disk "$dir/out.raw"
run cmp "$dir/out.raw" "$dir/now.raw"
run dog vdi export -s one disk "$dir/out.raw"
run cmp "$dir/out.raw" "$dir/in.raw"
allocated=$(($(stat -c %b "$dir/out.raw") * 512))
((allocated <= 12 << 20)) || die "the exported file is not sparse: $allocated bytes"
[[ ! -e $dir/out.raw.partial ]] || die "the partial file is left"

chapter "Over what was there"
run_line "head -c 48M /dev/urandom | dog vdi write disk"
run dog vdi resize disk 64M
run_line "head -c 16M /dev/urandom | dog vdi write disk 48M 16M"
run dog vdi import "$dir/in.raw" disk
cp "$dir/in.raw" "$dir/large.raw"
truncate -s 64M "$dir/large.raw"
holds "$dir/large.raw" disk
holds "$dir/in.raw" disk one
run dog vdi create small 4M
run_line "head -c 4M /dev/urandom >$dir/small.raw; dog vdi write small <$dir/small.raw"
expect 1 'it has 50331648 bytes, VDI small only 4194304; nothing was changed' dog vdi import "$dir/in.raw" small
holds "$dir/small.raw" small

chapter "Other formats"
export SHEEPDOG_NBD=$dir/1/nbd.sock
for format in qcow2 vmdk vdi; do
    run dog vdi export -s one -f $format disk "$dir/out.$format"
    expect 0 "file format: $format" qemu-img info "$dir/out.$format"
    expect 0 'Images are identical' qemu-img compare -f raw -F $format "$dir/in.raw" "$dir/out.$format"
    run dog vdi import -f $format "$dir/out.$format" "copy $format"
    holds "$dir/in.raw" "copy $format"
done
run_line "head -c 64M /dev/urandom | dog vdi write disk"
run dog vdi import -f qcow2 --socket "$dir/2/nbd.sock" "$dir/out.qcow2" disk
holds "$dir/large.raw" disk
# Somebody who has the volume open would see it change.
/usr/bin/python3 -c '
import nbd, signal, sys
handle = nbd.NBD()
handle.connect_uri(sys.argv[1])
print("open", flush=True)
signal.pause()
' "$(nbd_uri disk 1)" >"$dir/holder" &
own $!
holder=$!
wait_for 10 "a client that holds the volume" grep -q open "$dir/holder"
expect 1 "VDI disk is in use through 127.0.0.1:${port}1 .*; nothing was changed" dog vdi import -f qcow2 "$dir/out.qcow2" disk
expect 1 "VDI disk: it is in use through 127.0.0.1:${port}1 .* Nothing was deleted" dog vdi delete disk
kill $holder
expect 1 'looks like qcow2' dog vdi import "$dir/out.qcow2" wrong
expect 1 'VDI small only 4194304; nothing was changed' dog vdi import -f qcow2 "$dir/out.qcow2" small
expect 1 'cannot tell the size' dog vdi import -f qcow2 "$dir/in.raw" wrong
expect 1 'qemu-img convert failed' dog vdi import -f qcow2 --socket "$dir/nosuch.sock" "$dir/out.qcow2" wrong
expect 1 'qemu-img convert failed' dog vdi export -f qcow2 --socket "$dir/nosuch.sock" disk "$dir/wrong.qcow2"
holds "$dir/small.raw" small
[[ -z $(dog vdi list -r wrong) ]] || die "a VDI is left of an import that failed"
[[ ! -e $dir/wrong.qcow2 && ! -e $dir/wrong.qcow2.partial ]] || die "a file is left of an export that failed"
unset SHEEPDOG_NBD
run dog vdi export -f qcow2 disk "$dir/asked.qcow2"
expect 0 'Images are identical' qemu-img compare -f raw -F qcow2 "$dir/large.raw" "$dir/asked.qcow2"
run dog vdi export -f qcow2 -a "$dir/0/sock" disk "$dir/beside.qcow2"
expect 0 'Images are identical' qemu-img compare -f raw -F qcow2 "$dir/large.raw" "$dir/beside.qcow2"
no_panics
