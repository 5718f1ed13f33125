#!/usr/bin/env bash
# The link between two of three sheep is cut, one way, the other way, and both, under a write load through one of the two and through the
# third. Writes go on, one copy is left behind, and when the link is mended all copies are in sync and alike again.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/../hosts.sh"
need_packages python3 python3-libnbd
scenario_with_hosts 3 3

writer=$root/script/tracked_writer.py
figure() { cut -d' ' -f"$2" "$dir/$1.now"; }
has_written() { [[ -s $dir/$1.now ]] && (($(figure "$1" 1) >= $2)); }
# The owner says so when it goes on; dog compares copies, and waits for one that cannot be reached.
is_left_behind() { tail -n "+$3" "$dir/$1/sheep.log" | grep -q "a copy does not answer; going on without it, node: $(host_addr "$2"):7000"; }

# load NAME HOST VDI FIRST_MIB
load() {
    "$writer" write "$dir/$1" "$(nbd_uri "$3" "$2")" --first-mib "$4" --mib 32 --flight 8 >"$dir/$1.out" 2>&1 &
    own $!
    writers+=($!)
    wait_for 30 "writes through sheep $2" has_written "$1" 100
}

# cut_and_mend NAME HOW FROM TO OWNER BEHIND: cuts under a load through OWNER, who serves the VDI, and through another; then BEHIND is
# the one whose copy is left behind, or nobody.
cut_and_mend() {
    local disk=$1 how=$2 from=$3 to=$4 owner=$5 behind=$6 name logged other=2
    chapter "$how $from -> $to cut, sheep $owner serves the VDI"
    ((owner != 2)) || other=0
    run timeout 20 dog vdi create "$disk" 64M
    writers=()
    load owner "$owner" "$disk" 0
    load other "$other" "$disk" 32
    logged=$(($(wc -l <"$dir/$owner/sheep.log") + 1))
    "cut_$how" "$from" "$to"
    kill -USR1 "${writers[@]}"
    if [[ $behind != nobody ]]; then
        wait_for 20 "host $behind to be left behind" is_left_behind "$owner" "$behind" "$logged"
    fi
    for name in owner other; do
        wait_for 20 "500 more writes through the $name" has_written "$name" $(($(figure "$name" 1) + 500))
    done
    (($(dropped_packets "$to") > 0)) || die "nothing was said on the link that is cut"
    say "longest time without an acknowledgement: $(figure owner 4) ms through the owner, $(figure other 4) ms through the other"
    for name in owner other; do (($(figure "$name" 4) < 10000)) || die "writes through the $name stood still for $(figure "$name" 4) ms"; done
    "mend_$how" "$from" "$to"
    kill -TERM "${writers[@]}"
    for name in "${writers[@]}"; do wait "$name" || die "a writer found: $(cat "$dir/owner.out" "$dir/other.out")"; done
    cat "$dir/owner.out" "$dir/other.out"
    wait_for 60 "all copies in sync" in_sync "$disk"
    copies_alike "$disk"
    for name in owner other; do
        run timeout 60 "$writer" verify "$dir/$name" "$(nbd_uri "$disk" 0)" "$(nbd_uri "$disk" 1)" "$(nbd_uri "$disk" 2)"
    done
    rm "$dir"/o*er{,.out,.now}
}

cut_and_mend there way 0 1 0 1
cut_and_mend back way 1 0 0 1
cut_and_mend both link 0 1 0 1
cut_and_mend beside link 0 1 2 nobody
no_panics
