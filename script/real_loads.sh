# shellcheck shell=bash
# Two loads by programs of others: a Linux guest that writes files on ext4, and fio, which verifies what it wrote. Both reach their VDI
# through QEMU's NBD client, as virtual machines do: when its connection breaks it comes back and repeats what was not answered.
# To be sourced after lib.sh, hosts.sh and guest.sh.
#
# The guest writes a file of random bytes, makes it durable, says so with the file's checksum, and removes its oldest file; every so
# often it reads all files anew from the disk. When its host dies, it is started on the next one. What it said on its console is what
# must be there.

real_load_packages=("${guest_packages[@]}" libnbd-bin fio)
real_loads_mib=64

# reconnecting VDI HOST: a VDI as QEMU's options name it. A sheep is back long before these delays are over.
reconnecting() {
    echo "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path=$dir/$2/nbd.sock,file.export=$1,file.reconnect-delay=600,file.open-timeout=600"
}

make_real_vdis() {
    run timeout 60 dog vdi create -c 3 guest ${real_loads_mib}M
    run timeout 60 dog vdi create -c 3 fio ${real_loads_mib}M
    truncate -s ${real_loads_mib}M "$dir/guest.img"
    run mke2fs -q -t ext4 -b 4096 -E lazy_itable_init=0,lazy_journal_init=0 "$dir/guest.img"
    run timeout 60 qemu-img convert -n -f raw -O raw "$dir/guest.img" "$(nbd_uri guest 0)"
    make_initramfs "$dir/guest.initramfs" write_files
}
# start_real_loads SEED HOST_OF_GUEST HOST_OF_FIO
start_real_loads() {
    echo "$2" >"$dir/guest.host"
    guest_lives >"$dir/guest.lives" 2>&1 &
    guest_keeper=$! && own $!
    nice qemu-nbd -t -k "$dir/fio.sock" -x fio --cache=none --discard=unmap --image-opts "$(reconnecting fio "$3")" >"$dir/qemu-nbd.out" 2>&1 &
    own $!
    fio_rounds "$1" &
    fio_keeper=$! && own $!
    wait_for 120 "the guest's first file" guest_has_begun
    wait_for 60 "fio's first round" fio_has_begun
    real_loads_are_well
}
guest_has_begun() { [[ -n $(guest_files) ]] || ended "$guest_keeper"; }
fio_has_begun() { [[ -e $dir/fio.rounds ]] || ended "$fio_keeper"; }
real_loads_are_well() {
    ! ended "$fio_keeper" || die "fio ended: $(tail -20 "$dir/fio.out")"
    ! ended "$guest_keeper" || die "the guest ended: $(tail "$dir/guest.lives")"
    guest_is_well
}
end_real_loads() {
    touch "$dir/real_loads.end"
    wait_for 150 "the end of fio's last round" ended "$fio_keeper"
    wait_for 150 "the guest to power off" ended "$guest_keeper"
    guest_is_well
    wait "$fio_keeper" || die "fio found: $(tail -20 "$dir/fio.out")"
    wait "$guest_keeper" || die "the guest ended as it should not: $(tail "$dir/guest.lives")"
    grep -q '^guest: unmounted, powering off' "$(last_console)" || die "the guest did not unmount its disk"
}
# Whatever state they are in.
kill_real_loads() {
    kill -9 "${guest_keeper:-}" 2>/dev/null || true
    kill -9 "$(cat "$dir/guest.pid" 2>/dev/null)" 2>/dev/null || true
}
should_end() { [[ -e $dir/real_loads.end ]]; }

# ---- the guest ------------------------------------------------------------------------------------------------------

write_files() {
    cat <<'PROGRAM'
damaged() { say "DAMAGED: $*"; poweroff -f; }
check() {
    [ -s /files ] || return 0
    echo 3 >/proc/sys/vm/drop_caches
    (cd /disk && sha256sum -c /files) >/result 2>&1 || damaged "$(grep -v ': OK$' /result | head -5)"
    say "right: $(wc -l </files) files."
}
life=$(sed 's/.*life=//' /proc/cmdline)
mount -t ext4 -o discard /dev/vda /disk || damaged "cannot mount /dev/vda"
# Sums and names of the files that must be there, oldest first.
mv /expected /files
check
# What the last life had not come to say, or to do.
for file in /disk/f*; do grep -q " ${file#/disk/}$" /files || rm -f "$file"; done
{ say listens; read word; touch /end; } </dev/ttyS0 &
count=0
while [ ! -e /end ]; do
    count=$((count + 1))
    name=f$life.$count
    head -c $(((RANDOM % 64 + 1) * 4096 - RANDOM % 2 * 1000)) /dev/urandom >/data
    sum=$(sha256sum </data | cut -c1-64)
    dd if=/data of=/disk/$name bs=64k conv=fsync 2>/result || damaged "cannot write $name: $(head -1 /result)"
    echo "$sum  $name" >>/files
    say "wrote $sum $name."
    if [ $(wc -l </files) -gt 32 ]; then
        read sum name </files
        sed -i 1d /files
        say "removes $name."
        rm /disk/$name || damaged "cannot remove $name"
    fi
    [ $((count % 16)) != 0 ] || check
    usleep 50000
done
umount /disk && mount -t ext4 /dev/vda /disk || damaged "cannot mount again"
check
umount /disk && say "unmounted, powering off"
PROGRAM
}

# The files that the guest must find, from what it has said: "SUM  NAME", oldest first. A line that was cut short when it died says nothing.
guest_files() {
    { cat "$dir"/console.* 2>/dev/null || true; } | tr -d '\r' | awk '
        /^guest: wrote [0-9a-f]+ f[0-9.]+\.$/ {sub(/\.$/, ""); sum[$4] = $3; order[++n] = $4}
        /^guest: removes f[0-9.]+\.$/ {sub(/\.$/, ""); delete sum[$3]}
        END {for (i = 1; i <= n; i++) if (order[i] in sum) print sum[order[i]] "  " order[i]}'
}
consoles() { find "$dir" -name 'console.*' | sort; }
last_console() { consoles | tail -1; }
# An emulator that gets too little time of a busy machine: the kernel does not even come to look at its disk.
had_no_timer() { grep -aq "IO-APIC + timer doesn't work" "$1"; }
guest_is_well() {
    local console
    for console in $(consoles); do
        had_no_timer "$console" || ! grep -aE 'DAMAGED|I/O error|EXT4-fs (error|warning)|JBD2|Kernel panic' "$console" || die "the guest's file system is hurt: see above"
    done
}

# The guest's lives, one after another, until it is to end. A life ends by SIGKILL, or because the guest was told to power off.
guest_lives() {
    local life=0 code qemu console
    mkfifo "$dir/guest.keys"
    exec 5<>"$dir/guest.keys"
    while true; do
        life=$((life + 1)) code=0
        console=$dir/console.$(printf '%03d' $life)
        guest_files >"$dir/expected"
        { cat "$dir/guest.initramfs" && (cd "$dir" && echo expected | busybox cpio -o -H newc 2>/dev/null | gzip -1); } >"$dir/guest.initrd"
        guest_machine "$dir/guest.initrd" stdio "life=$life"
        nice "${guest_command[@]}" -drive "$(reconnecting guest "$(<"$dir/guest.host")"),if=virtio,cache=none,discard=unmap" \
            <&5 >"$console" 2>"$dir/qemu.$life.out" &
        qemu=$!
        echo $qemu >"$dir/guest.pid"
        echo "$(date +%T) life $life on host $(<"$dir/guest.host")"
        wait_for 3600 "the end of the guest's life, or the time to end it" has_to_end $qemu "$console"
        ended $qemu || echo end >&5
        wait $qemu || code=$?
        ((code == 137)) || had_no_timer "$console" || break
    done
    echo "$(date +%T) QEMU ended with $code"
    return $code
}
# has_to_end QEMU CONSOLE: it has ended by itself, or is to end and listens.
has_to_end() { ended "$1" || { should_end && grep -aq '^guest: listens' "$2"; }; }
# guest_dies_with HOST...: the guest's own host dies, and it with it.
guest_dies_with() {
    local host
    host=$(cat "$dir/guest.host" 2>/dev/null) || return 0
    [[ " $* " == *" $host "* ]] || return 0
    echo $(((host + 1) % hosts)) >"$dir/guest.host"
    kill -9 "$(<"$dir/guest.pid")"
}

# ---- fio ------------------------------------------------------------------------------------------------------------

# fio_round SEED ROUND URI WORDS...: writes half of the VDI in random order, and reads it back. Every 4 KiB say the seed, the round and where
# they belong, all over: fio's checksums would take the block of an earlier round for a good one.
fio_round() {
    fio --name=round --ioengine=nbd "--uri=$3" --direct=1 --rw=randwrite --bsrange=4k-64k --blockalign=4k --size=${real_loads_mib}M --io_size=32M \
        --iodepth=8 --randseed=$(($1 * 1000 + $2)) --verify=pattern "--verify_pattern=$(printf '0x%08x%08x%%o' "$1" "$2")" --verify_interval=4096 \
        --verify_fatal=1 --do_verify=1 --verify_state_save=0 "${@:4}"
}
fio_rounds() {
    local round=0
    while ! should_end; do
        round=$((round + 1))
        fio_round "$1" $round "nbd+unix:///fio?socket=$dir/fio.sock" >"$dir/fio.out" 2>&1 || return 1
        echo $round >"$dir/fio.rounds"
    done
}

# ---- what must be there in the end ----------------------------------------------------------------------------------

# compare_real_loads SEED: copy by copy, and through every sheep.
compare_real_loads() {
    local name host
    for name in guest fio; do
        wait_for 120 "full redundancy of $name" in_sync $name
        copies_alike $name
    done
    for ((host = 0; host < hosts; host++)); do
        for name in guest fio; do
            timeout 120 nbdcopy "$(nbd_uri $name "$host")" "$dir/$name.$host.img"
            cmp "$dir/$name.0.img" "$dir/$name.$host.img" || die "$name is not the same through hosts 0 and $host"
        done
    done
    e2fsck -fn "$dir/guest.0.img" >"$dir/e2fsck.out" 2>&1 || { cat "$dir/e2fsck.out" && die "the guest's file system is damaged"; }
    mkdir "$dir/files"
    guest_files >"$dir/expected"
    debugfs -R "rdump / $dir/files" "$dir/guest.0.img" 2>/dev/null
    (cd "$dir/files" && sha256sum --quiet -c "$dir/expected") || die "files that the guest made durable are not what they were"
    fio_round "$1" "$(<"$dir/fio.rounds")" "$(nbd_uri fio 0)" --verify_only=1 >"$dir/fio.out" 2>&1 ||
        die "fio does not find what it wrote: $(tail -20 "$dir/fio.out")"
}
real_figures() {
    say "guest: $(cat "$dir"/console.* | grep -ac '^guest: wrote') files in $(consoles | wc -l) lives, $(cat "$dir"/console.* |
        tr -d '\r' | sed -n 's/^guest: right: \([0-9]*\) .*/\1/p' | awk '{n += $1} END {print n}') checked under load; $(wc -l <"$dir/expected") in the end"
    say "fio: $(<"$dir/fio.rounds") rounds of 32 MiB written and verified"
}
