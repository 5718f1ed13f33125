#!/usr/bin/env bash
# A Linux guest under QEMU, whose disk is a VDI over NBD, finds its file system as the host made it, and the host finds
# what the guest wrote.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/../guest.sh"
need_packages "${guest_packages[@]}" libnbd-bin
guest_kernel
scenario_with_sheep 3

make_image "$dir/guest.img" "$(choose_tree 250)" 512M
run dog vdi create guest 512M
run qemu-img convert -n -f raw -O raw "$dir/guest.img" "$(nbd_uri guest)"
boot_guest "$(nbd_uri guest)" "$dir/console"
check_guest_wrote "$(nbd_uri guest 1)" "$dir/back.img"
no_panics
