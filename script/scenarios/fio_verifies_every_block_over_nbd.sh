#!/usr/bin/env bash
# fio writes with many requests in flight, in several block sizes, over several connections to several sheep, and finds
# the checksum of every block in place.
. "$(dirname "$0")/../lib.sh"
need_packages fio
# Clients on threads of their own.
sheep_options=(--io-threads 3)
scenario_with_sheep 3

run dog vdi create disk 256M
cd "$dir"
common=(--ioengine=nbd --direct=1 --verify=crc32c --verify_fatal=1 --do_verify=1 --verify_state_save=0 --group_reporting)
run timeout 120 fio --name=small "${common[@]}" "--uri=$(nbd_uri disk 0)" --rw=randwrite --bs=4k --size=32M --iodepth=32
run timeout 120 fio --name=mixed "${common[@]}" "--uri=$(nbd_uri disk 1)" --rw=randwrite --bsrange=4k-256k --bs_unaligned=0 \
    --blockalign=4k --offset=32M --size=96M --iodepth=16
run timeout 120 fio --name=large "${common[@]}" "--uri=$(nbd_uri disk 2)" --rw=write --bs=1M --offset=128M --size=64M --iodepth=8
say "two connections to one sheep and one to another, each on its own part"
run timeout 120 fio "${common[@]}" --rw=randrw --rwmixread=30 --bs=4k --iodepth=16 --size=16M \
    --name=a "--uri=$(nbd_uri disk 0)" --offset=192M \
    --name=b "--uri=$(nbd_uri disk 0)" --offset=208M \
    --name=c "--uri=$(nbd_uri disk 1)" --offset=224M
no_panics
