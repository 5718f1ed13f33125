#!/usr/bin/env bash
# dog freezes, clones, rolls back and deletes: every snapshot, clone and working VDI has the bytes it must have, through every
# sheep.
. "$(dirname "$0")/../lib.sh"
scenario_with_sheep 3

# fill NAME OFFSET_MIB MIB BYTE, and the same in the file that says what NAME should hold.
fill() {
    local file=$dir/piece
    head -c "$(($3 << 20))" /dev/zero | tr '\0' "$4" >"$file"
    dog vdi write "$1" "$2M" "$3M" <"$file"
    dd if="$file" of="$dir/$1.want" bs=1M seek="$2" conv=notrunc status=none
}
# holds WANT_FILE NAME [SELECTOR]: these bytes, through each sheep.
holds() {
    local sheep
    for sheep in 0 1 2; do
        dog vdi read ${3:+-s "$3"} -p "$port$sheep" "$2" | cmp - "$1" || die "$2 ${3:-} is wrong through sheep $sheep"
    done
}
raw() { dog vdi list -r "$@"; }

chapter "Snapshots"
run dog vdi create disk 32M
truncate -s 32M "$dir/disk.want"
fill disk 2 6 a
expect 0 '^new VID of original VDI: [0-9a-f]+, VDI ID of newly created snapshot: [0-9a-f]+$' dog vdi snapshot -v -s one disk
cp "$dir/disk.want" "$dir/one.want"
fill disk 7 3 b
run dog vdi snapshot -s two disk
cp "$dir/disk.want" "$dir/two.want"
fill disk 0 1 c
fill disk 20 1 d
holds "$dir/one.want" disk one
holds "$dir/two.want" disk 2
holds "$dir/disk.want" disk
expect 1 'Failed to create snapshot for disk, maybe snapshot id \(0\) or tag \(two\) is existed$' dog vdi snapshot -s two disk
expect 64 'number' dog vdi snapshot -s 7 disk
expect 1 '^Failed to create snapshot for nobody: No VDI found$' dog vdi snapshot -s x nobody
expect 0 '^disk---\[[-0-9 :]+\]---\[[-0-9 :]+\]---\(you are here\)$' dog vdi tree
expect 0 '"0" -> "[0-9a-f]+";' dog vdi graph
[[ $(raw disk | cut -d' ' -f1,3,10 | sort) == $'= 0 \ns 1 one\ns 2 two' ]] || die "unexpected list: $(raw)"

chapter "Several at one moment"
run dog vdi create journal 8M
run dog vdi snapshot -s pair disk journal
expect 0 '^s journal 1 .* pair 22$' dog vdi list -r journal
expect 0 '^s disk 3 .* pair 22$' dog vdi list -r disk
expect 1 'for disk, .* tag \(pair\) is existed$' dog vdi snapshot -s pair disk
run dog vdi snapshot -R disk
[[ $(raw disk | wc -l) == 4 ]] || die "a snapshot without changes was made"

chapter "Clones"
run dog vdi clone -s one disk thin
run dog vdi clone -s two -P disk thick
run dog vdi clone -s 3 -n disk apart
cp "$dir/one.want" "$dir/thin.want"
holds "$dir/one.want" thin
holds "$dir/two.want" thick
holds "$dir/disk.want" apart
expect 0 '^c thin 0 33554432 0 ' dog vdi list -r thin
[[ $(raw thick | cut -d' ' -f6) == 0 ]] || die "a thick clone shares something: $(raw thick)"
expect 0 '^= apart 0 33554432 [1-9][0-9]* 0 ' dog vdi list -r apart
fill thin 4 2 e
holds "$dir/thin.want" thin
holds "$dir/one.want" disk one
expect 1 '^Failed to create VDI thin: VDI exists already$' dog vdi clone -s one disk thin
expect 64 "specify the '-s' option" dog vdi clone disk other
expect 1 'Failed to find requested tag$' dog vdi clone -s nosuch disk other

chapter "Rollback"
run_line "echo no | dog vdi rollback -s one disk"
holds "$dir/disk.want" disk
run_line "echo yes | dog vdi rollback -s one disk"
holds "$dir/one.want" disk
run dog vdi rollback -f -s pair disk
holds "$dir/disk.want" disk
expect 64 "specify the '-s' option" dog vdi rollback -f disk
expect 1 'Failed to find requested tag$' dog vdi rollback -f -s nosuch disk

chapter "Deletion"
run dog vdi delete -s one disk
holds "$dir/thin.want" thin
holds "$dir/two.want" disk two
expect 1 'Deleted: thin, thick, apart; not deleted: nobody' dog vdi delete thin thick apart nobody
run dog vdi delete -s two disk
holds "$dir/disk.want" disk
run dog vdi delete -s pair disk journal
run dog vdi delete disk journal
[[ -z $(raw) ]] || die "left: $(raw)"

chapter "Attributes"
run dog vdi create disk 4M
run dog vdi setattr disk color red
expect 3 "The attribute 'color' already exists" dog vdi setattr -x disk color blue
run dog vdi snapshot disk
head -c 65536 /dev/urandom >"$dir/value"
run_line "dog vdi setattr disk large <$dir/value"
run_line "dog vdi getattr -p ${port}1 disk large | cmp - $dir/value"
expect 1 'too long' bash -c "head -c 65537 /dev/zero | dog vdi setattr disk large"
[[ $(dog vdi getattr -p "${port}2" disk color) == red ]] || die "the attribute is lost"
run dog vdi setattr -d disk color
expect 5 "Attribute 'color' not found" dog vdi getattr disk color
expect 5 'VDI not found' dog vdi getattr nobody color
for i in 1 2 3 4 5 6 7 8; do
    { dog vdi setattr -x -p "$port$((i % 3))" disk winner "$i" && echo "$i" >>"$dir/winners"; } 2>/dev/null &
    pids[i]=$!
done
for i in 1 2 3 4 5 6 7 8; do wait "${pids[i]}" || true; done
[[ $(cat "$dir/winners") == "$(dog vdi getattr disk winner)" ]] || die "not exactly one has won: $(cat "$dir/winners")"

chapter "Where it is"
expect 0 '^Tracking the inode object 0x[0-9a-f]+ with 3 nodes$' dog vdi track disk
expect 0 'is not allocated' dog vdi track -i 0 disk
no_panics
