# shellcheck shell=bash
# A small Linux guest: Debian's cloud kernel and an initramfs with busybox, whose disk is /dev/vda. What it does there is a piece of
# shell; the one given here mounts the disk, checks files by checksum, and writes one. Emulated, since hardware virtualisation
# is not everywhere. To be sourced.

guest_packages=(qemu-utils qemu-block-extra qemu-system-x86 busybox-static e2fsprogs)
guest_cache=$target/guest
# What boots it, before the arguments.
guest_qemu=(qemu-system-x86_64)
# What the kernel has built in has no file and is passed over.
guest_modules=(crc16 crc32c_generic mbcache jbd2 ext4
    virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk)

# Fetches the kernel without installing it: $guest_cache/root then looks like / of a machine that has it.
guest_kernel() {
    compgen -G "$guest_cache/root/boot/vmlinuz-*" >/dev/null && return
    [[ $(dpkg --print-architecture) == amd64 ]] || skip "the guest's kernel is for amd64"
    local package
    package=$(kernel_package)
    [[ -n $package ]] || { as_root apt-get update -q >/dev/null && package=$(kernel_package); }
    [[ -n $package ]] || die "no package linux-image-cloud-amd64 to be had"
    rm -rf "$guest_cache"
    mkdir -p "$guest_cache"
    (cd "$guest_cache" && run apt-get -q download "$package" 2>/dev/null)
    mkdir "$guest_cache/unpacked"
    run dpkg-deb -x "$guest_cache/$package"_*.deb "$guest_cache/unpacked"
    rm "$guest_cache/$package"_*.deb
    mv "$guest_cache/unpacked" "$guest_cache/root"
}
kernel_package() { apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '/Depends: linux-image-/ {print $2; exit}'; }

# make_initramfs FILE [PROGRAM [FILES...]]: PROGRAM is the function that prints what the guest does between booting and powering off. FILES are
# copied to its /bin.
make_initramfs() {
    local tree module found
    tree=$(mktemp -d "$dir/initramfs.XXXXXX")
    mkdir -p "$tree"/{bin,proc,sys,dev,disk,modules}
    (($# <= 2)) || cp "${@:3}" "$tree/bin/"
    cp "$(dpkg -L busybox-static | grep 'bin/busybox$')" "$tree/bin/busybox"
    for module in "${guest_modules[@]}"; do
        found=$(find "$guest_cache/root" -name "$module.ko*" | head -1)
        [[ -z $found ]] || cp "$found" "$tree/modules/"
    done
    cat >"$tree/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
say() { echo "guest: $*" >/dev/console; }
# Which module needs which differs between kernels: those that came too early get in at a later pass.
for pass in 1 2 3 4; do for module in /modules/*; do insmod "$module" 2>/dev/null; done; done
for try in $(seq 200); do [ -b /dev/vda ] && break; usleep 50000; done
. /program
poweroff -f
INIT
    "${2:-check_and_write_once}" >"$tree/program"
    chmod +x "$tree/init"
    (cd "$tree" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$1"
    rm -rf "$tree"
}
check_and_write_once() {
    cat <<'PROGRAM'
if mount -t ext4 /dev/vda /disk; then
    say "mounted a disk of $(df -m /disk | awk 'END {print $3}') MiB in use"
    cd /disk
    sha256sum -c SHA256SUMS >/tmp.sums 2>/dev/null
    say "$(grep -c ': OK$' /tmp.sums) files intact, $(grep -vc ': OK$' /tmp.sums) damaged"
    { echo "written by a guest under Linux $(uname -r)"; sha256sum SHA256SUMS; } >from-guest
    dd if=/dev/urandom of=random-from-guest bs=1M count=8 2>/dev/null
    sha256sum random-from-guest >random-from-guest.sum
    sync
    cd /
    umount /disk && say "unmounted, powering off"
else
    say "cannot mount /dev/vda"
fi
PROGRAM
}

# A directory tree of this machine that suits as a guest's disk: as much as possible up to $1 MiB, in not too many files
# (mke2fs needs half a millisecond for each).
choose_tree() {
    local tree size best='' best_size=0
    for tree in "$(rustc --print sysroot)/lib" /usr/lib/x86_64-linux-gnu /usr/lib/gcc /usr/share; do
        [[ -d $tree ]] || continue
        (($(du -sx --inodes "$tree" | cut -f1) <= 8000)) || continue
        size=$(du -smx "$tree" | cut -f1)
        if ((size <= $1 && size > best_size)); then best=$tree best_size=$size; fi
    done
    [[ -n $best ]] || die "found no directory tree of less than $1 MiB"
    echo "$best"
}

# make_image FILE TREE SIZE: an ext4 file system with the tree and a list SHA256SUMS of some of its files, small enough
# to be checked under emulation.
make_image() {
    run truncate -s "$3" "$1"
    run mke2fs -q -t ext4 -b 4096 -d "$2" "$1"
    (cd "$2" && find . -xdev -type f -size -4M -size +0 ! -name '*[\\[:cntrl:]]*' -print0 | sort -z |
        awk 'BEGIN {RS = ORS = "\0"} ++n <= 300' | xargs -0 sha256sum) >"$1.sums"
    run debugfs -w -R "write $1.sums SHA256SUMS" "$1" 2>/dev/null
}

# guest_machine INITRAMFS SERIAL [WORDS]: fills $guest_command, without a disk. WORDS go to the kernel.
guest_machine() {
    local kernel
    kernel=$(echo "$guest_cache"/root/boot/vmlinuz-*)
    guest_command=("${guest_qemu[@]}" -accel "tcg,thread=multi" -machine q35 -cpu max -smp 2 -m 384 -nodefaults -no-reboot -display none
        -serial "$2" -kernel "$kernel" -initrd "$1" -append "console=ttyS0 quiet panic=-1 tsc=unstable ${3:-}")
}

# boot_guest IMAGE CONSOLE_FILE: boots, waits for the guest to power off, and checks what it said. Words after these
# go to QEMU.
boot_guest() {
    make_initramfs "$dir/initramfs.gz"
    local code=0
    guest_machine "$dir/initramfs.gz" "file:$2"
    run timeout 120 "${guest_command[@]}" \
        -drive "file=$1,format=raw,if=virtio,cache=none,discard=unmap" "${@:3}" </dev/null || code=$?
    tr -d '\r' <"$2" | grep '^guest: ' || true
    ((code == 0)) || { tail -30 "$2" && die "the guest did not power off (QEMU ended with $code)"; }
    grep -q 'guest: .* files intact, 0 damaged' "$2" || die "the guest found damaged files"
    grep -q 'guest: unmounted, powering off' "$2" || die "the guest did not unmount its disk"
}

# check_guest_wrote NBD_URI COPY: the host reads back what the guest wrote, by way of a raw copy in the file COPY.
check_guest_wrote() {
    run nbdcopy "$1" "$2"
    run_line "e2fsck -fn $2 >$2.fsck 2>&1" || { cat "$2.fsck" && die "the guest's file system is damaged"; }
    run debugfs -R 'cat /from-guest' "$2" 2>/dev/null | tee "$2.from-guest"
    grep -q 'written by a guest' "$2.from-guest" || die "the host does not see what the guest wrote"
    debugfs -R "dump /random-from-guest $2.random" "$2" 2>/dev/null
    debugfs -R 'cat /random-from-guest.sum' "$2" 2>/dev/null | cut -c1-64 >"$2.sum"
    [[ -s $2.random && $(sha256sum <"$2.random" | cut -c1-64) == "$(cat "$2.sum")" ]] ||
        die "what the guest wrote does not have the checksum that it had in the guest"
}

# run_guest CONSOLE_FILE INITRAMFS WORDS...: a guest of 384 MiB and two processors, in the background. $guest_pid is its QEMU. Its memory can be
# shared with others.
run_guest() {
    guest_machine "$2" "file:$1"
    guest_command+=(-object "memory-backend-memfd,id=memory,size=384M,share=on" -numa "node,memdev=memory" "${@:3}")
    show "${guest_command[@]}"
    # Not by `run`: its shell would be what is ended in QEMU's place.
    "${guest_command[@]}" </dev/null &
    guest_pid=$!
    own $guest_pid
}

# Sets $vhost_disk: what QEMU is told of a disk behind the vhost-user socket $1. It connects again after the sheep is gone.
use_vhost_disk() {
    local again=reconnect=1
    # The newer word came with 9.2, later ones know no other.
    [[ $("${guest_qemu[0]}" --version) =~ version\ ([0-9]+) ]] && ((BASH_REMATCH[1] < 10)) || again=reconnect-ms=1000
    vhost_disk=(-chardev "socket,id=sheep,path=$1,$again" -device "vhost-user-blk-pci,chardev=sheep,num-queues=2")
}

# guest_said CONSOLE_FILE PATTERN: has it?
guest_said() { tr -d '\r' <"$1" | grep -qE "^guest: $2"; }
# guest_says SECONDS CONSOLE_FILE PATTERN: waits for it, and dies if the guest ends before.
guest_says() {
    wait_for "$1" "the guest to say '$3'; it said: $(tail -3 "$2" 2>/dev/null)" guest_said_or_ended "$2" "$3"
    guest_said "$2" "$3" || { tail -30 "$2" && die "the guest ended without saying '$3'"; }
}
guest_said_or_ended() { guest_said "$@" || ended "$guest_pid"; }
