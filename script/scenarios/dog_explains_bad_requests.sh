#!/usr/bin/env bash
# Each wrong request to dog ends with its exit code and a sentence that says why; and changes nothing.
. "$(dirname "$0")/../lib.sh"
scenario_with_sheep 0
choose_ports

say "nobody there"
expect 2 "failed to connect to 127.0.0.1:${port}0" dog node list
expect 2 'failed to connect to' dog vdi create a 1G

say "not formatted"
start_sheep 0
expect 0 'Cluster status: Waiting for cluster to be formatted' dog cluster info
expect 1 'Failed to create VDI a: Waiting for cluster to be formatted' dog vdi create a 1G
expect 0 'Name +Id +Size' dog vdi list
expect 1 'Invalid parameter 0' dog cluster format --copies=0
expect 1 'Invalid parameter 32' dog cluster format --copies=32
expect 1 'Invalid parameter x' dog cluster format --copies=x
expect 2 'Targeted backend store is not found' dog cluster format -b nosuch
run dog cluster format --copies=1
wait_for 20 "a running cluster" cluster_runs
run dog vdi create there 8M

say "names"
expect 1 'Failed to open VDI nobody .*: No VDI found' dog vdi read nobody
expect 1 'Failed to open VDI nobody .*: No VDI found' dog vdi write nobody
expect 1 'Failed to open VDI nobody .*: No VDI found' dog vdi resize nobody 1G
expect 1 'Failed to open VDI nobody .*: No VDI found' dog vdi object map nobody
expect 1 'Failed to open VDI nobody .*: No VDI found' dog vdi check nobody
expect 0 'Failed to open VDI nobody .*: No VDI found' dog vdi delete nobody
expect 64 '.' dog vdi create '' 1G
expect 1 'Failed to create VDI there: VDI exists already' dog vdi create there 1G
longest=$(printf 'n%.0s' {1..255})
run dog vdi create "$longest" 4M
expect 0 "^= $longest 0 4194304 " dog vdi list -r "$longest"
got=0 && dog vdi create "${longest}n" 4M 2>/dev/null || got=$?
((got != 0)) || die "a name of 256 bytes was accepted"

say "sizes"
expect 64 "Invalid size '12X'" dog vdi create a 12X
expect 64 "Invalid size '1GB'" dog vdi create a 1GB
expect 64 "Invalid size ''" dog vdi create a ''
expect 64 '.' dog vdi create a 5T
expect 64 '.' dog vdi create a 99999999999999999999
expect 0 '^= there 0 8388608 ' dog vdi list -r there
expect 64 'Shrinking VDIs is not implemented' dog vdi resize there 4M
expect 64 'New VDI size is too large' dog vdi resize there 5T
expect 1 'offset is beyond the end of the VDI' dog vdi read there 9M
expect 1 'offset is beyond the end of the VDI' dog vdi write there 9M
[[ $(dog vdi read there 7M 99M | wc -c) == 1048576 ]] || die "a read beyond the end is not cut there"
run dog vdi create empty 0
[[ $(dog vdi read empty | wc -c) == 0 ]] || die "an empty VDI has bytes"

say "usage"
expect 0 'Available commands:' dog
expect 64 "Invalid command 'fly'" dog fly
expect 64 "Invalid command 'vdi fly'" dog vdi fly
expect 64 '.' dog vdi create a
expect 64 '.' dog vdi create --fly a 1G
expect 64 '.' dog vdi lock
expect 64 '.' dog -p notaport vdi list
expect 64 '.' dog node kill 7
expect 0 '^0 ' dog node list -r
[[ $(dog vdi list -r | wc -l) == 3 ]] || die "something else was created: $(dog vdi list -r)"
no_panics
