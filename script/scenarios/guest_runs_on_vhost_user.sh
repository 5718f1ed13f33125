#!/usr/bin/env bash
# A Linux guest under QEMU, whose disk is a VDI over vhost-user-blk, writes, discards and reads blocks that it checks, while its
# disk grows and while its sheep is killed and started again, several times. The load goes on, and all it wrote is there.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/../guest.sh"
need_packages "${guest_packages[@]}" gcc libc6-dev
guest_kernel
# Clients on threads of their own.
sheep_options=(--io-threads 3)
scenario_with_sheep 0
choose_ports
sockets=$dir/vhost
start_vhost_sheep() { start_sheep 0 --vhost-user "$sockets"; }
start_vhost_sheep
start_sheep 1
start_sheep 2
wait_for 20 "3 members" members_are 3
run dog cluster format --copies=3
wait_for 20 "a running cluster" cluster_runs

# ---- what can be attached, and where --------------------------------------------------------------------------------
run dog vdi create guest 64M
expect 64 "specify the '--vhost-user' option.*" dog vdi attach guest
expect 1 'Failed to find VDI nobody' dog vdi attach --vhost-user nobody nobody
expect 1 "this sheep makes them in $sockets" dog vdi attach --vhost-user /tmp/guest.sock guest
expect 1 'start it with --vhost-user DIRECTORY' dog vdi attach -p "${port}1" --vhost-user guest guest
expect 0 "^$sockets/guest.sock$" dog vdi attach --vhost-user "$sockets/guest.sock" guest
expect 0 "^$sockets/guest.sock$" dog vdi attach --vhost-user guest.sock guest
[[ $(stat -c '%a %F' "$sockets/guest.sock") == '600 socket' && $(stat -c %a "$sockets") == 700 ]] ||
    die "others can connect: $(ls -la "$sockets")"
expect 0 "^guest 0 $sockets/guest.sock$" dog vdi attached -r

# ---- a guest that works -----------------------------------------------------------------------------------------------
run gcc -O2 -static -o "$dir/guest_load" "$root/script/guest_load.c"
verify_load() {
    cat <<'PROGRAM'
say "a disk of $(cat /sys/block/vda/size) sectors in $(ls /sys/block/vda/mq | wc -l) queues"
guest_load verify /dev/vda 64 4 393216 && say "all is well"
PROGRAM
}
make_initramfs "$dir/initramfs.gz" verify_load "$dir/guest_load"
use_vhost_disk "$sockets/guest.sock"
console=$dir/console
run_guest "$console" "$dir/initramfs.gz" "${vhost_disk[@]}"
guest_says 120 "$console" 'a disk of 131072 sectors in 2 queues'
operations() { tr -d '\r' <"$console" | sed -n 's/^guest: load at //p' | tail -1; }
got_to() { (($(operations) >= $1)) || ended "$guest_pid"; }
# The load goes on from where it is now.
goes_on() {
    local from
    from=$(operations)
    wait_for 60 "the load to go on from $from" got_to $((from + 200))
    guest_said_or_ended "$console" 'LOAD FAILED' && { tail -30 "$console" && die "the guest's load ended"; }
    say "the load went on from $from to $(operations)"
}
guest_says 60 "$console" 'load at [1-9]'
goes_on
expect 0 "^guest 1 $sockets/guest.sock$" dog vdi attached -r
expect 1 'a guest is connected' dog vdi detach guest
expect 0 '^guest .* running on .*qemu' dog vm list

chapter "The disk grows under the guest"
run dog vdi resize guest 128M
guest_says 20 "$console" 'the disk has 262144 sectors now'

chapter "The sheep is killed under the guest"
for round in 1 2 3; do
    kill_sheep 0
    start_vhost_sheep
    goes_on
done

chapter "The sheep ends in order, and is away for a while"
pid=$(sheep_pid 0)
run kill "$pid"
wait_for 20 "the end of sheep 0" ended "$pid"
run dog vdi resize -p "${port}1" guest 160M
start_vhost_sheep
goes_on
guest_says 20 "$console" 'the disk has 327680 sectors now'

chapter "The guest reads everything it has written"
run dog vdi resize guest 192M
wait_for 120 "the guest to power off" ended "$guest_pid"
tr -d '\r' <"$console" | grep '^guest: ' | grep -v 'load at'
guest_said "$console" 'all is well' || { tail -30 "$console" && die "the guest is not content"; }
expect 0 "^guest 0 $sockets/guest.sock$" dog vdi attached -r
run dog vdi check guest
expect 0 "^$sockets/guest.sock$" dog vdi detach guest
[[ ! -e $sockets/guest.sock && -z $(dog vdi attached -r) ]] || die "something is still attached"
no_panics
