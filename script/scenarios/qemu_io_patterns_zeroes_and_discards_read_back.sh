#!/usr/bin/env bash
# qemu-io writes patterns of odd sizes at odd places, zeroes, discards and flushes; every read shows the last of them,
# also through another sheep, and discarded objects give their space back.
. "$(dirname "$0")/../lib.sh"
need_packages qemu-utils qemu-block-extra
scenario_with_sheep 3

run dog vdi create disk 64M
io() { run timeout 60 qemu-io -f raw -t none -d unmap "${@:2}" "$(nbd_uri disk "$1")" >"$dir/io.log" || { cat "$dir/io.log" && die "qemu-io failed"; }; }

io 0 -c 'write -P 0xa1 0 512' -c 'write -P 0xa2 4k 4k' -c 'write -P 0xa3 3M 3M' -c 'write -P 0xa4 12345k 777k' \
    -c 'write -f -P 0xa5 63M 1M' -c 'write -P 0xa6 67108352 512' -c flush
checks=(-c 'read -P 0xa1 0 512' -c 'read -P 0 512 3584' -c 'read -P 0xa2 4k 4k' -c 'read -P 0 8k 1000k' -c 'read -P 0xa3 3M 3M'
    -c 'read -P 0xa4 12345k 777k' -c 'read -P 0xa5 63M 1048064' -c 'read -P 0xa6 67108352 512' -c 'read -P 0 6M 6M')
for sheep in 0 1 2; do io "$sheep" "${checks[@]}"; done

say "64 writes of 512 bytes beside each other, all at once"
commands=()
for ((i = 0; i < 64; i++)); do commands+=(-c "aio_write -q -P $((i + 1)) $((32 * 1048576 + i * 512)) 512"); done
io 1 "${commands[@]}" -c aio_flush
commands=()
for ((i = 0; i < 64; i++)); do commands+=(-c "read -q -P $((i + 1)) $((32 * 1048576 + i * 512)) 512"); done
io 2 "${commands[@]}"

say "zeroes and discards, of part of an object, of a whole one, and across objects"
io 0 -c 'write -z 4608 512' -c 'write -z -u 3M 512k' -c 'discard 4M 2M' -c 'discard 63M 1M' -c 'write -P 0xb1 63M 4k'
for sheep in 0 1 2; do
    io "$sheep" -c 'read -P 0xa2 4k 512' -c 'read -P 0 4608 512' -c 'read -P 0xa2 5k 3k' -c 'read -P 0 3M 512k' \
        -c 'read -P 0xa3 3584k 512k' -c 'read -P 0 4M 2M' -c 'read -P 0xb1 63M 4k' -c 'read -P 0 64516k 1020k'
done
used=$(dog vdi list -r disk | cut -d' ' -f5)
io 0 -c 'discard 0 64M'
io 1 -c 'read -P 0 0 64M'
left=$(dog vdi list -r disk | cut -d' ' -f5)
say "used before the discard $used bytes, after it $left"
((left == 0 && used > 0)) || die "expected that nothing is left in use"
no_panics
