#!/usr/bin/env bash
# Clients that vanish in the middle of a write, of a handshake or with many answers outstanding leave no half written
# block, no lock and no growing memory behind; requests beyond the end and of wrong size get the protocol's error.
. "$(dirname "$0")/../lib.sh"
need_packages python3 python3-libnbd qemu-utils qemu-block-extra
# Clients on threads of their own.
sheep_options=(--io-threads 3)
scenario_with_sheep 3

run dog vdi create disk 64M
run qemu-io -f raw -c 'write -P 0x11 0 64M' "$(nbd_uri disk 1)"
run /usr/bin/python3 "$root/script/garbage.py" vanish "unix:$dir/0/nbd.sock" "unix:$dir/1/nbd.sock"
run timeout 120 /usr/bin/python3 "$root/script/garbage.py" whole-blocks "$(nbd_uri disk 2)"

say "requests that cannot be served, by libnbd with its own checks off"
run timeout 60 /usr/bin/python3 - "$(nbd_uri disk 0)" <<'PYTHON'
import errno, nbd, sys
client = nbd.NBD()
client.set_strict_mode(0)
client.connect_uri(sys.argv[1])
size = client.get_size()
def refused(expected, request, *args, **kw):
    try:
        request(*args, **kw)
    except nbd.Error as error:
        assert error.errnum in expected, f"{args[1:]}: {error}"
    else:
        raise SystemExit(f"{request.__name__}{args[1:]} was accepted")
for offset, length in [(size, 512), (size - 512, 1024), (1 << 62, 4096), ((1 << 64) - 4096, 4096)]:
    refused({errno.EINVAL}, client.pread, length, offset)
    refused({errno.ENOSPC, errno.EINVAL}, client.pwrite, bytes(length), offset)
    refused({errno.EINVAL, errno.ENOSPC}, client.trim, length, offset)
    refused({errno.EINVAL, errno.ENOSPC}, client.zero, length, offset)
refused({errno.EINVAL, errno.ERANGE, errno.EOVERFLOW}, client.pread, 33 << 20, 0)
assert client.pread(512, 0) is not None
print("all refused, and the connection is still good")
PYTHON
io=(qemu-io -f raw -c 'write -P 0x12 0 64M' -c 'read -P 0x12 0 64M')
run timeout 60 "${io[@]}" "$(nbd_uri disk 0)"
run dog vdi delete disk
no_panics
