#!/usr/bin/env bash
# tgt, an iSCSI target that speaks the native protocol, serves one VDI over TCP and one over the unix socket. An image
# copied in through iSCSI is the same through NBD, and the other way round; libiscsi's own tests of reading and writing pass.
. "$(dirname "$0")/../lib.sh"
((EUID == 0)) || skip "tgtd must be root"
need_packages tgt qemu-utils qemu-block-extra libiscsi-bin libnbd-bin
# Clients on threads of their own.
sheep_options=(--io-threads 3)
scenario_with_sheep 3

run dog vdi create tcp 256M
run dog vdi create unix 256M

# tgtd reads the number of its control socket and the path from the environment, so ours meets no other.
export TGT_IPC_SOCKET=$dir/tgt
portal=127.0.0.1:${port}9
tgtd -f --iscsi "portal=$portal" >"$dir/tgtd.log" 2>&1 &
own $!
admin() { run tgtadm --lld iscsi "$@"; }
wait_for 10 "tgtd answers" tgtadm --lld iscsi --mode system --op show
target=iqn.2026-01.test:sheep
admin --mode target --op new --tid 1 --targetname "$target"
admin --mode logicalunit --op new --tid 1 --lun 1 --bstype sheepdog --backing-store "tcp:127.0.0.1:${port}1:tcp"
admin --mode logicalunit --op new --tid 1 --lun 2 --bstype sheepdog --backing-store "unix:$dir/0/sock:unix"
admin --mode target --op bind --tid 1 --initiator-address ALL
expect 22 '' tgtadm --lld iscsi --mode logicalunit --op new --tid 1 --lun 3 --bstype sheepdog \
    --backing-store "tcp:127.0.0.1:${port}0:nobody"
lun() { echo "iscsi://$portal/$target/$1"; }

run_line "head -c 70000000 /dev/urandom >$dir/in.raw; truncate -s 256M $dir/in.raw"
vdis=(- tcp unix)
for lun in 1 2; do
    expect 0 '^268435456|256 MiB' qemu-io -f raw -c length "$(lun $lun)"
    run timeout 120 qemu-img convert -n -f raw -O raw "$dir/in.raw" "$(lun $lun)"
    run timeout 120 qemu-img compare -f raw -F raw "$dir/in.raw" "$(lun $lun)"
    run timeout 120 nbdcopy "$(nbd_uri "${vdis[lun]}" 2)" "$dir/out.raw"
    run cmp "$dir/in.raw" "$dir/out.raw"
    run_line "dog vdi read ${vdis[lun]} | cmp - $dir/in.raw"
    say "what NBD writes, iSCSI reads: in blocks that were there and in a hole"
    run qemu-io -f raw -c 'write -P 0x61 5M 64k' -c 'write -P 0x62 200M 5M' -c flush "$(nbd_uri "${vdis[lun]}" 0)"
    run qemu-io -f raw -c 'read -P 0x61 5M 64k' -c 'read -P 0x62 200M 5M' -c 'read -P 0 205M 1M' "$(lun $lun)"
    for suite in Read10 Write10; do
        run timeout 120 iscsi-test-cu -d -t "ALL.$suite" "$(lun $lun)" >"$dir/iscsi.log" 2>&1 || { cat "$dir/iscsi.log" && die "iscsi-test-cu failed"; }
        awk '$1 == "tests" {print "  " $0; failed = $5} END {exit failed != 0}' "$dir/iscsi.log" ||
            { cat "$dir/iscsi.log" && die "a test of libiscsi failed"; }
    done
done

say "a sheep that tgt does not talk to dies"
kill_sheep 2
run timeout 60 qemu-io -f raw -c 'write -P 0x71 9M 3M' -c 'read -P 0x71 9M 3M' -c 'read -P 0x62 200M 4M' "$(lun 1)"
no_panics
