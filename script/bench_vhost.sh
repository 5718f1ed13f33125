# shellcheck shell=bash
# The cell of script/bench about guests: one and the same Linux guest with its disk over vhost-user-blk, and over virtio-blk on NBD. To be
# sourced by it. The guest is emulated, which takes most of the time of a request: the two are to be compared with each other only.

# bench_guest SYSTEM REPEAT QEMU_WORDS...: 4 KiB at random by 16 processes in a guest with this disk; a line `write N` and one `read N` in a file.
bench_guest() {
    local console="$dir/vhost.console" out="$dir/vhost.$1"
    run_guest "$console" "$dir/vhost.gz" "${@:3}"
    wait_for $((60 + 4 * seconds)) "the guest to end" ended "$guest_pid"
    tr -d '\r' <"$console" | sed -nE 's/^guest: ((read|write) [0-9]+)$/\1/p' >"$dir/vhost.rates"
    [[ $(wc -l <"$dir/vhost.rates") == 2 ]] || { tail -30 "$console" && die "the guest did not measure"; }
    cat "$dir/vhost.rates" >>"$out"
}

write_and_read() { echo "guest_load write /dev/vda 1024 16 $seconds; guest_load read /dev/vda 1024 16 $seconds"; }
bench_vhost() {
    local repeat
    # shellcheck source=script/guest.sh
    . "$root/script/guest.sh"
    need_packages "${guest_packages[@]}" gcc libc6-dev
    guest_kernel
    gcc -O2 -static -o "$dir/guest_load" "$root/script/guest_load.c"
    make_initramfs "$dir/vhost.gz" write_and_read "$dir/guest_load"
    dog vdi attach --vhost-user bench bench >/dev/null
    use_vhost_disk "$dir/vhost0/bench"
    for ((repeat = 1; repeat <= repeats; repeat++)); do
        say "vhost, $repeat of $repeats"
        bench_guest vhost-user "$repeat" "${vhost_disk[@]}"
        bench_guest nbd "$repeat" -drive "file=$(nbd_uri bench),format=raw,if=none,id=disk,cache=none,discard=unmap" \
            -device virtio-blk-pci,drive=disk,num-queues=2
    done
    dog vdi detach bench >/dev/null
}
