#!/usr/bin/env bash
# A VDI moves to another cluster by one complete backup and differences; whatever is wrong with a backup, nothing is changed.
. "$(dirname "$0")/../lib.sh"
need_packages qemu-utils qemu-block-extra
scenario_with_sheep 3

raw() { dog vdi list -r "$@"; }
# name, snapshot id and tag of all that is there
short() { raw | cut -d' ' -f1-3,10 | sort; }
holds() { dog vdi read ${3:+-s "$3"} "$2" | cmp - "$1" || die "$2 ${3:-} does not hold $1"; }
# random MIB_AT KIB: into disk and $dir/disk.want
random() {
    head -c "$(($2 << 10))" /dev/urandom >"$dir/piece"
    dog vdi write disk "$1M" "$2K" <"$dir/piece"
    dd if="$dir/piece" of="$dir/disk.want" bs=1M seek="$1" conv=notrunc status=none
}
freeze() {
    run dog vdi snapshot -s "$1" disk
    cp "$dir/disk.want" "$dir/$1.want"
}

chapter "Three snapshots, one complete backup, two differences"
run dog vdi create disk 40M
truncate -s 40M "$dir/disk.want"
random 1 3000
random 17 64
freeze one
random 2 100
random 30 2000
freeze two
run dog vdi resize disk 50M
truncate -s 50M "$dir/disk.want"
head -c 8M /dev/zero | dog vdi write disk 0 8M
dd if=/dev/zero of="$dir/disk.want" bs=1M count=8 conv=notrunc status=none
random 48 10
freeze three
run_line "dog vdi backup -s one disk >$dir/one.bak"
run_line "dog vdi backup -F one -s two -o $dir/two.bak disk"
run_line "dog vdi backup -F two -s three disk >$dir/three.bak"
size=$(stat -c %s "$dir/two.bak")
((size < 2200 << 10)) || die "2100 KiB of changes take $size bytes"

chapter "Restored on top of the same snapshot"
run_line "dog vdi restore -s one disk <$dir/two.bak"
id=$(raw disk | sed -n 's/^s disk \([0-9]*\) .*/\1/p' | sort -n | tail -1)
holds "$dir/two.want" disk "$id"
holds "$dir/disk.want" disk
random 5 40
run_line "dog vdi restore -s one disk <$dir/two.bak"
holds "$dir/disk.want" disk
id=$(raw disk | sed -n 's/^s disk \([0-9]*\) .*/\1/p' | sort -n | tail -1)
holds "$dir/two.want" disk "$id"
[[ $(short | wc -l) == 6 ]] || die "something else is there: $(short)"

chapter "What is wrong changes nothing"
before=$(raw | sort)
unchanged() {
    [[ $(raw | sort) == "$before" ]] || die "changed: $(raw)"$'\n'"before: $before"
    holds "$dir/disk.want" disk
}
refuse() { expect 1 "$1" bash -c "dog vdi restore $2 <$3" && unchanged; }
head -c $((size - 1)) "$dir/two.bak" >"$dir/bad" && refuse 'ends too early' '-s one disk' "$dir/bad"
head -c $((size / 2)) "$dir/two.bak" >"$dir/bad" && refuse 'ends too early' '-s one disk' "$dir/bad"
head -c 100 "$dir/two.bak" >"$dir/bad" && refuse 'ends too early' '-s one disk' "$dir/bad"
for at in 13 700 1040 1100 $((size - 10)); do
    cp "$dir/two.bak" "$dir/bad"
    printf '\x5a' | dd of="$dir/bad" bs=1 seek="$at" conv=notrunc status=none
    refuse 'damaged|does not belong' '-s one disk' "$dir/bad"
done
refuse 'not a backup' '-s one disk' "$dir/disk.want"
refuse 'nothing in it' '-s one disk' /dev/null
refuse 'starts from another snapshot' '-s two disk' "$dir/two.bak"
refuse 'starts from another snapshot' '-s one disk' "$dir/three.bak"
refuse 'complete by itself' '-s one disk' "$dir/one.bak"
expect 64 "specify the '-s' option" bash -c "dog vdi restore disk <$dir/two.bak"
unchanged

chapter "A backup that was interrupted goes on"
for len in 0 500 1024 30000 $((size - 5)); do
    head -c "$len" "$dir/two.bak" >"$dir/part"
    run dog vdi backup -F one -s two -o "$dir/part" disk
    cmp "$dir/part" "$dir/two.bak"
done
expect 0 'complete already' dog vdi backup -F one -s two -o "$dir/part" disk
expect 1 'something else' dog vdi backup -F one -s three -o "$dir/part" disk
cmp "$dir/part" "$dir/two.bak"

chapter "In use"
run qemu-io -f raw -c 'read 0 4k' "$(nbd_uri disk)"
mkfifo "$dir/commands"
qemu-io -f raw "$(nbd_uri disk)" <"$dir/commands" >"$dir/qemu-io.log" 2>&1 &
own $!
exec 5>"$dir/commands"
echo 'write -P 0x41 12M 64k' >&5
wait_for 10 "a write" grep -q wrote "$dir/qemu-io.log"
head -c 65536 /dev/zero | tr '\0' A | dd of="$dir/disk.want" bs=1M seek=12 conv=notrunc status=none
run_line "dog vdi restore -s one disk <$dir/two.bak"
id=$(raw disk | sed -n 's/^s disk \([0-9]*\) .*/\1/p' | sort -n | tail -1)
holds "$dir/two.want" disk "$id"
echo 'write -P 0x42 13M 64k' >&5
wait_for 10 "another write" grep -q 'offset 13631488' "$dir/qemu-io.log"
head -c 65536 /dev/zero | tr '\0' B | dd of="$dir/disk.want" bs=1M seek=13 conv=notrunc status=none
echo quit >&5
exec 5>&-
holds "$dir/disk.want" disk

chapter "Another cluster"
mkdir "$dir/other"
run sheep -c local "$dir/other/5" -z 5 -p "${port}5"
export SHEEPDOG_DOG_PORT=${port}5
expect 0 'Waiting for cluster to be formatted' dog cluster info
run dog cluster format --copies=1
wait_for 20 "a running cluster" cluster_runs
run_line "dog vdi restore copy <$dir/one.bak"
holds "$dir/one.want" copy
run_line "dog vdi restore -s one copy <$dir/two.bak"
run_line "dog vdi restore -s two copy <$dir/three.bak"
holds "$dir/one.want" copy one
holds "$dir/two.want" copy two
holds "$dir/three.want" copy three
run dog vdi rollback -f -s three copy
holds "$dir/three.want" copy
expect 0 '^finish check&repair copy$' dog vdi check -s three copy
[[ $(short | cut -d' ' -f2 | sort -u) == copy ]] || die "something else is there: $(short)"
no_panics
