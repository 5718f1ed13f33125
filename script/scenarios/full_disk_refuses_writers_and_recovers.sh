#!/usr/bin/env bash
# Small disks run full: writers get "no space" and nothing else, all that was acknowledged reads back, a restart works,
# and deleting and discarding make room again.
. "$(dirname "$0")/../lib.sh"
need_packages python3 python3-libnbd qemu-utils qemu-block-extra
scenario_with_sheep 0

choose_ports
start() { run sheep -c local "$dir/$1,$dir/disk$1" -z "$1" -p "$port$1"; }
for sheep in 0 1 2; do
    truncate -s 768M "$dir/disk$sheep"
    start "$sheep"
done
wait_for 20 "three members" members_are 3
run dog cluster format --copies=3
wait_for 20 "a running cluster" cluster_runs
run dog vdi create small 64M
run qemu-io -f raw -c 'write -P 0x33 0 64M' "$(nbd_uri small)"
run dog vdi create big 4G

fill() { run timeout 200 /usr/bin/python3 - "$1" "$(nbd_uri big 0)" <<'PYTHON'; }
import errno, nbd, sys
client = nbd.NBD()
client.connect_uri(sys.argv[2])
size = 256 << 10
def content(at):
    return (at // size + 1).to_bytes(8, "little") * (size // 8)
at = 0
if sys.argv[1] == "fill":
    while at < client.get_size():
        try:
            client.pwrite(content(at), at)
        except nbd.Error as error:
            assert error.errnum == errno.ENOSPC, error
            break
        at += size
    assert 200 << 20 < at < 768 << 20, f"{at >> 20} MiB fitted"
    open("filled", "w").write(str(at))
    print(f"no space after {at >> 20} MiB, as it should be")
    # What is there can be overwritten all the same.
    for each in range(0, at, 16 * size):
        client.pwrite(b"\xee" * size, each)
    for each in range(0, at, 16 * size):
        assert client.pread(size, each) == b"\xee" * size, f"not overwritten at {each}"
        client.pwrite(content(each), each)
else:
    at = int(open("filled").read())
for each in range(0, at, size):
    assert client.pread(size, each) == content(each), f"lost at {each}"
print(f"all {at >> 20} MiB read back")
PYTHON
cd "$dir"
expect 0 '^ok$' dog cluster health
fill fill
expect 2 '^full$' dog cluster health
for sheep in 0 1 2; do
    grep -q "^the disk of node $sheep (127.0.0.1:$port$sheep) is full: guests' writes that need room there are refused now" <<<"$output" ||
        die "nothing is said of the disk of sheep $sheep: $output"
done
expect 2 '^full	the disk of node 0 ' dog cluster health -r
for sheep in 0 1 2; do
    wait_for 10 "the log to tell of the full disk" grep -q "WARN.* the disk of a node is full: .* node: 127.0.0.1:$port$sheep\$" "$dir/0/sheep.log"
done
expect 1 'space' timeout 20 bash -c "head -c 4194304 /dev/urandom | dog vdi write big 3G"
run qemu-io -f raw -c 'read -P 0x33 0 64M' "$(nbd_uri small 1)"
kill_sheep 0 1 2
for sheep in 0 1 2; do start "$sheep"; done
wait_for 30 "a running cluster of three" sees 0 3
fill check
run dog vdi delete small
run qemu-io -f raw -d unmap -c 'discard 0 64M' "$(nbd_uri big 1)"
run timeout 60 qemu-io -f raw -c 'write -P 0x34 3G 64M' -c 'read -P 0x34 3G 64M' "$(nbd_uri big 2)"
has_room() { [[ $(dog cluster health -r | head -1) != full ]]; }
wait_for 60 "room on all disks" has_room
no_panics
