#!/usr/bin/env bash
# Where too few copies are up, reads and lists go on, whatever else is held, and whoever has to wait is told for whom. A sheep that is stopped
# does not keep dog from showing the others.
. "$(dirname "$0")/../lib.sh"
need_packages qemu-utils qemu-block-extra
scenario_with_sheep 3

health_is() { [[ $(dog cluster health -r | head -1) == "$1" ]]; }
# held SECONDS COMMAND...: the command is held, and ended after these seconds. What it said is left in $output.
held() {
    local code=0
    output=$(timeout "$1" "${@:2}" 2>&1 </dev/null | tr -d '\0') || code=$?
    ((code == 124)) || die "'${*:2}' was expected to wait, but ended with $code; it said:"$'\n'"$output"
}

run dog vdi create alice 64M
run dog vdi create bob 64M
head -c 8M /dev/urandom >"$dir/data"
for vdi in alice bob; do run_line "dog vdi write $vdi 0 8M <$dir/data"; done
run dog vdi snapshot -s monday alice

chapter "Two of three die; the owner lives"
kill_sheep 1 2
wait_for 20 "a cluster that is blocked" health_is blocked
say "a write is held, and its client is told for whom it waits"
run_line "head -c 4096 /dev/urandom >$dir/block"
held 6 bash -c "dog vdi write alice 4M 4K <$dir/block"
grep -q "^Waiting for sheep 127.0.0.1:${port}0, which has not answered for 3 s$" <<<"$output" || die "said: $output"
grep -q "have too few copies up for writes; they wait for .*127.0.0.1:${port}[12] (down)" <<<"$output" || die "said: $output"
say "after it has gone, its VDI is read and listed"
for _ in 1 2 3; do
    cmp <(timeout 10 dog vdi read alice 0 4M) <(head -c 4M "$dir/data") || die "the data are not the same"
    cmp <(timeout 10 dog vdi read -s monday alice 0 8M) "$dir/data" || die "the snapshot is not the same"
    [[ $(timeout 10 dog vdi list -r | grep -vc ' - - ') == 3 ]] || die "the list is not complete: $(dog vdi list)"
    sleep 2
done
say "a check tells what it did not compare"
expect 0 "^Not all copies were compared: [1-9][0-9]* placement groups lack copies on 127.0.0.1:${port}1, 127.0.0.1:${port}2, down" dog vdi check bob
say "a snapshot cannot be made, and keeps nobody from reading"
timeout 3 dog vdi snapshot -s tuesday alice && die "a snapshot was made of a VDI whose writes are held"
cmp <(timeout 10 dog vdi read alice 0 4M) <(head -c 4M "$dir/data") || die "the data are not the same"
expect 0 '^s alice +1 ' dog vdi list
expect 0 '^alice ' dog vm list
start_sheep 1
start_sheep 2
wait_for 60 "a healthy cluster" health_is ok

chapter "The owner dies with another one"
# The snapshot may have been made after all, when the copies came back before it was given up. The working VDI comes last.
owner() { dog vdi list --json alice -p "${port}1" | sed -n 's/.*"owner": //p' | tail -1; }
qemu-io -f raw -c 'write -P 5 16M 4k' -c "sleep 60000" "$(nbd_uri alice 1)" >"$dir/qemu-io" 2>&1 &
own $!
owned() { [[ $(owner) == "\"127.0.0.1:${port}1\"," ]]; }
wait_for 20 "a VDI that is served by sheep 1" owned
kill_sheep 1 2
wait_for 20 "a cluster that is blocked" health_is blocked
say "what cannot be told of a VDI is left open, and why"
expect 1 '^  alice +0 +64 MB +- +- ' dog vdi list
grep -q "^No answer about the space that these use, so it is shown as '-': alice$" <<<"$output" || die "said: $output"
grep -q "they wait for .*127.0.0.1:${port}[12] (down)" <<<"$output" || die "said: $output"
grep -qE '^  bob +0 +64 MB +8.0 MB' <<<"$output" || die "said: $output"
grep -qE '^s alice +1 +64 MB +8.0 MB' <<<"$output" || die "said: $output"
expect 1 '^alice +\| +64 MB\| +-\| +-\| not running$' dog vm list
cmp <(timeout 10 dog vdi read -s monday alice 0 8M) "$dir/data" || die "the snapshot is not the same"
cmp <(timeout 10 dog vdi read bob 0 8M) "$dir/data" || die "bob is not the same"
held 6 dog vdi read alice 0 4
grep -q "they wait for .*127.0.0.1:${port}[12] (down)" <<<"$output" || die "said: $output"
start_sheep 1
start_sheep 2
wait_for 60 "a healthy cluster" health_is ok
cmp <(timeout 20 dog vdi read alice 0 4M) <(head -c 4M "$dir/data") || die "the data are not the same"

chapter "A sheep is stopped"
run kill -STOP "$(sheep_pid 2)"
for command in 'node info' 'node recovery' 'vm list' 'cluster health'; do
    # shellcheck disable=SC2086 # words
    timeout 20 dog $command >"$dir/out" 2>"$dir/err" </dev/null || code=$?
    run_line "cat $dir/err $dir/out"
    grep -q "^Waiting for sheep 127.0.0.1:${port}2, which has not answered for 3 s$" "$dir/err" || die "dog $command said: $(cat "$dir/err")"
    [[ $command == 'cluster health' ]] || grep -q "127.0.0.1:${port}2.* accepts connections but does not answer" "$dir/err" || die "dog $command said: $(cat "$dir/err")"
    ((${code:-0} != 124)) || die "dog $command does not end"
done
say "the others tell"
expect 0 '^ 1.[1-9]' dog node info
expect 0 '^   2   127.0.0.1' dog node list
expect 0 "127.0.0.1:${port}0:[0-9]+, 127.0.0.1:${port}1:[0-9]+" dog cluster info
say "the one that is asked is stopped"
for command in 'node list' 'cluster info' 'cluster health' 'vdi list'; do
    # shellcheck disable=SC2086 # words
    expect 2 "^Waiting for sheep 127.0.0.1:${port}2, which has not answered for 3 s$" dog $command -p "${port}2"
    grep -q "Communication with 127.0.0.1:${port}2 failed: it accepts connections but does not answer" <<<"$output" || die "dog $command said: $output"
done
expect 2 "^Waiting for sheep 127.0.0.1:${port}2, which has not answered for 3 s$" dog vdi snapshot -s wednesday bob -p "${port}2"
run kill -CONT "$(sheep_pid 2)"
wait_for 20 "a healthy cluster" health_is ok
no_panics
