#!/usr/bin/env bash
# What the README of the first Sheepdog told its users to type works behind `dog run --` with a QEMU that has no driver for
# it: create, convert, boot, snapshot, boot from the snapshot, clone. `dog vm list` shows who runs.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/../guest.sh"
need_packages "${guest_packages[@]}" binutils
guest_kernel
scenario_with_sheep 3
cd "$dir"

# ---- a guest that fits a boot sector: it copies sector 1 to sector 2, says what is in it, and ends QEMU with code 33 ----------
cat >boot.s <<'ASM'
.code16
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $0x7c00, %sp
    mov $packet, %si
    mov $0x42, %ah
    int $0x13
    jc failed
    movb $2, packet + 8
    mov $packet, %si
    mov $0x4300, %ax
    int $0x13
    jc failed
    mov $0x7e00, %si
    mov $0x3f8, %dx
say:
    lodsb
    test %al, %al
    jz said
    outb %al, %dx
    jmp say
said:
    mov $0x10, %al
    outb %al, $0xf4
failed:
    mov $0x20, %al
    outb %al, $0xf4
packet:
    .byte 16, 0
    .word 1, 0x7e00, 0
    .quad 1
.org 510
    .word 0xaa55
ASM
as --32 -o boot.o boot.s
ld -m elf_i386 -Ttext 0x7c00 -e 0x7c00 --oformat binary -o boot.bin boot.o

# disk FILE TEXT: an image whose guest says this.
disk() {
    cp boot.bin "$1"
    printf '%s\n' "$2" | dd of="$1" bs=512 seek=1 conv=notrunc status=none
    truncate -s 40M "$1"
    head -c 3000000 /dev/urandom | dd of="$1" bs=1M seek=20 conv=notrunc status=none
}
# says TEXT ARGUMENT...: a machine with these arguments boots and says this.
says() {
    local text=$1 code=0
    shift
    : >console
    run timeout 60 dog run -- qemu-system-x86_64 -accel tcg -m 64 -nodefaults -display none -serial file:console \
        -device isa-debug-exit,iobase=0xf4,iosize=4 "$@" </dev/null 2>stderr || code=$?
    cat stderr console
    ! grep -q 'format was not specified' stderr || die "QEMU had to guess the format"
    ((code == 33)) || die "the machine ended with $code"
    [[ $(<console) == "$text" ]] || die "the guest said '$(<console)' instead of '$text'"
}
# sector NAME NUMBER [SNAPSHOT]: its text.
sector() { dog vdi read ${3:+-s "$3"} "$1" $((512 * $2)) 512 | tr -d '\0'; }
same() { expect 0 'Images are identical' dog run -- qemu-img compare -f raw "$1" "$2"; }
no_volume() { [[ -z $(dog vdi list -r "$1") ]] || die "the volume $1 is there"; }

chapter "The lines"
disk amd64.raw 'first life'
run_line "dog run -- qemu-img create sheepdog:Alice 256G >out"
[[ $(<out) == "Formatting 'sheepdog:Alice', fmt=raw size=274877906944" ]] || die "qemu-img says something else"
[[ $(dog vdi list -r Alice | cut -d' ' -f4,5) == '274877906944 0' ]] || die "Alice is not an empty volume of 256G"

run dog run -- qemu-img convert amd64.raw sheepdog:Bob
run_line "dog vdi read Bob | cmp - amd64.raw"
[[ $(dog vdi list -r Bob | cut -d' ' -f5) == $((8 << 20)) ]] || die "more was copied than the image holds"

run dog run -- qemu-img convert -n amd64.raw sheepdog:Alice
says 'first life' -hda sheepdog:Alice
[[ $(sector Alice 2) == 'first life' ]] || die "the guest's write is not in Alice"

run dog run -- qemu-img snapshot -c name sheepdog:Alice
run dog run -- qemu-io -c 'write -P 0 512 512' sheepdog:Alice
run_line "echo 'second life' | dog vdi write Alice 512 12"
says 'second life' -hda sheepdog:Alice

says 'first life' -hda sheepdog:Alice:1
grep -q 'goes to a temporary file' stderr || die "nobody was told what becomes of the guest's writes"
[[ $(sector Alice 2) == 'second life' && $(sector Alice 2 1) == 'first life' ]] || die "a boot from a snapshot changed something"
says 'first life' -drive file=sheepdog:Alice:name,if=ide

run dog run -- qemu-img create -b sheepdog:Alice:1 sheepdog:Charlie
run_line "echo 'third life' | dog vdi write Charlie 512 11"
says 'third life' -hda sheepdog:Charlie
[[ $(sector Charlie 2) == 'third life' && $(sector Alice 2 name) == 'first life' ]] || die "the clone is not its own"

chapter "Other ways to name a volume"
says 'second life' "sheepdog:127.0.0.1:${port}1:Alice"
says 'second life' -drive "file=sheepdog://127.0.0.1:${port}2/Alice,if=ide,cache=none"
says 'second life' -drive "if=ide,file.driver=sheepdog,file.vdi=Alice,file.server.type=unix,file.server.path=$dir/1/sock"
says 'third life' -hda "sheepdog+unix:///Charlie?socket=$dir/2/sock"
says 'second life' -blockdev driver=sheepdog,node-name=d,vdi=Alice -device ide-hd,drive=d
says 'second life' -blockdev '{"driver":"raw","node-name":"d","file":{"driver":"sheepdog","vdi":"Alice"}}' -device ide-hd,drive=d
run dog run -- qemu-img convert -o redundancy=2,object_size=1M amd64.raw 'sheepdog:a, b'
says 'first life' -hda 'sheepdog:a, b'
[[ $(dog vdi list -r 'a, b' | cut -d' ' -f9,10,11,12) == *'2  20' ]] || die "the volume was not made as asked"
same amd64.raw sheepdog:Bob
expect 0 'Images are identical' dog run -- qemu-img compare --image-opts driver=file,filename=amd64.raw driver=sheepdog,vdi=Bob
dog run -- qemu-nbd -r -t -k "$dir/q.sock" -x x sheepdog:Bob &
nbd_server=$!
own $nbd_server
wait_for 10 "qemu-nbd" test -S q.sock
expect 0 'Images are identical' qemu-img compare -f raw -F raw amd64.raw "nbd+unix:///x?socket=$dir/q.sock"

chapter "A Linux guest"
mkdir tree
cp "$root"/crates/dog/src/*.rs tree
make_image guest.raw "$dir/tree" 64M
run dog run -- qemu-img convert -f raw guest.raw sheepdog:guest
guest_qemu=(dog run -- qemu-system-x86_64)
boot_guest sheepdog:guest "$dir/linux"
check_guest_wrote "$(nbd_uri guest 1)" "$dir/back.img"

chapter "What qemu-img says and does"
qemu-img create -q -f qcow2 real.qcow2 256G
qemu-img snapshot -c name real.qcow2
blur() { sed -E 's/[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8}/DATE/'; }
diff <(qemu-img snapshot -l real.qcow2 | blur) <(dog run -- qemu-img snapshot -l sheepdog:Alice | blur) || die "lists differ"
diff <(qemu-img info "$(nbd_uri Alice)" | grep -E '^(file|virtual)') \
    <(dog run -- qemu-img info sheepdog:Alice | grep -E '^(file|virtual)') || die "qemu-img info says something else"
dog run -- qemu-img info --output=json sheepdog:Alice | python3 -c '
import json, sys
info = json.load(sys.stdin)
assert (info["virtual-size"], info["format"], info["filename"]) == (256 << 30, "raw", "sheepdog:Alice"), info
assert [(s["id"], s["name"]) for s in info["snapshots"]] == [("1", "name")], info'
expect 0 'Image resized' dog run -- qemu-img resize sheepdog:Bob +2M
expect 0 '^virtual size: 42 MiB' dog run -- qemu-img info sheepdog:Bob
expect 1 'Shrinking' dog run -- qemu-img resize --shrink sheepdog:Bob -1M
run dog run -- qemu-img snapshot -a name sheepdog:Alice
[[ $(sector Alice 1) == 'first life' && $(sector Alice 1 2) == 'second life' ]] || die "the snapshot was not applied"
run dog run -- qemu-img snapshot -d 2 sheepdog:Alice
[[ $(dog vdi list -r Alice | grep -c '^s') == 1 ]] || die "the snapshot was not deleted"
run dog run -- qemu-img convert -l name -O qcow2 sheepdog:Alice out.qcow2
# The guest had written sector 2.
cp amd64.raw was.raw
dd if=amd64.raw of=was.raw bs=512 skip=1 seek=2 count=1 conv=notrunc status=none
expect 0 'Images are identical' qemu-img compare -f raw -F qcow2 was.raw out.qcow2
run dog run -- qemu-img create -q -f qcow2 -b sheepdog:Alice:1 over.qcow2
expect 0 'backing file: json:' qemu-img info over.qcow2

chapter "The command is in dog's place"
dog run -- qemu-system-x86_64 -accel tcg -m 64 -nodefaults -display none -S -hda sheepdog:Alice </dev/null &
machine=$!
own $machine
runs() { dog vm list "$1" | grep -qE "^$1 .*\| $2\$"; }
wait_for 20 "a running machine" runs Alice "running on 127.0.0.1:${port}0 \(qemu-system-x86 $machine\)"
run dog vm list
grep -q qemu-system "/proc/$machine/comm" || die "dog is still there"
[[ $(dog vm list -r Alice) == *"127.0.0.1:${port}0,qemu-system-x86\\ $machine" ]] || die "vm list -r: $(dog vm list -r Alice)"
runs Bob "running on 127.0.0.1:${port}0 \(qemu-nbd $nbd_server\)" || die "qemu-nbd is not listed"
runs Charlie 'not running' || die "a volume runs that nobody uses"
kill -TERM $machine
code=0
wait $machine || code=$?
((code == 0)) || die "the machine ended with $code"
wait_for 5 "the end of it in vm list" runs Alice 'not running'

chapter "A sheep is restarted beneath a program that dog run has started"
mkfifo commands
dog run -p "${port}1" -- qemu-io sheepdog:Charlie <commands >io.out 2>&1 &
io=$!
own "$io"
exec 9>commands
echo 'read 0 4k' >&9
wait_for 10 "a first read" grep -q 'read 4096/4096' io.out
kill_sheep 1
echo 'write -P 7 39M 4k' >&9
start_sheep 1 9>&-
wait_for 60 "a write that outlives the restart" grep -q 'wrote 4096/4096' io.out
echo 'read -P 7 39M 4k' >&9
reads_are() { (($(grep -c 'read 4096/4096' io.out) == $1)); }
wait_for 10 "what was written" reads_are 2
exec 9>&-
wait "$io" || die "qemu-io failed: $(cat io.out)"
wait_for 20 "3 members" members_are 3

chapter "What cannot be"
before=$(dog vdi list -r | sort)
expect 0 '^dog vdi create Dave 41943040' dog run -P -- qemu-img convert amd64.raw sheepdog:Dave
expect 1 'Failed to open VDI nosuch .*: No VDI found' dog run -- qemu-system-x86_64 -hda sheepdog:nosuch
expect 1 'Failed to open VDI Alice .*snapshot id: 9.*: Failed to find' dog run -- qemu-img map sheepdog:Alice:9
expect 1 'port is no number' dog run -- qemu-img info sheepdog:host:Alice:tag
expect 1 'socket=PATH is expected' dog run -- qemu-io sheepdog+unix:///Alice
expect 1 "Cannot find the address of 'no.such.host.invalid'" dog run -- qemu-img info sheepdog://no.such.host.invalid/Alice
expect 2 'failed to connect to .*nosuch/sock' dog run -- qemu-img info "sheepdog+unix:///Alice?socket=$dir/nosuch/sock"
expect 64 'no program that dog run knows' dog run -- cp sheepdog:Alice copy
expect 1 'exists already: with -n' dog run -- qemu-img convert amd64.raw sheepdog:Alice
expect 1 'VDI exists already' dog run -- qemu-img create sheepdog:Alice 1G
expect 1 'Only snapshots of volumes' dog run -- qemu-img create -b sheepdog:Alice sheepdog:Dave
expect 1 'number of coroutines' dog run -- qemu-img convert -m 99 amd64.raw sheepdog:Dave
no_volume Dave
dave_is_gone() { [[ -z $(dog vdi list -r Dave) ]]; }
# As the terminal does it: both get the interrupt.
code=0
head -c 64M /dev/urandom >slow.raw
timeout -s INT 2 dog run -- qemu-img convert -r 1M slow.raw sheepdog:Dave || code=$?
((code == 124)) || die "an interrupted conversion ended with $code"
wait_for 10 "the end of the incomplete volume" dave_is_gone
[[ $(dog vdi list -r | sort) == "$before" ]] || die "what was refused changed something"
run rm "$dir/2/nbd.sock"
expect 1 "has no NBD socket at $dir/2/nbd.sock: restart it" dog run -p "${port}2" -- qemu-io -c 'read 0 4k' sheepdog:Alice
expect 0 'read 4096/4096' dog run -p "${port}1" -- qemu-io -c 'read 0 4k' sheepdog:Alice
no_panics
