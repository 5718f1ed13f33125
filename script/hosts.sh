# shellcheck shell=bash
# Hosts on one machine: a network namespace for each sheep, all on one switch, whose links are cut by packet filters. To
# be sourced after lib.sh.
#
# Host N has the address 10.99.0.(N+1) and the sheep whose directory is $dir/N. Clients and dog come in by that sheep's unix
# sockets, and the cluster driver `local` goes by files: what is cut is what sheep say to each other, and nothing else.
# The switch has a namespace of its own too, so nothing of this shows on the machine, and runs side by side do not meet.

hosts=0
host_prefix=sheep-$$

host_name() { echo "$host_prefix-$1"; }
host_addr() { echo "10.99.0.$(($1 + 1))"; }
on_host() { ip netns exec "$(host_name "$1")" "${@:2}"; }

# Skips the scenario where hosts cannot be made.
need_hosts() {
    ((EUID == 0)) || skip "network namespaces need root"
    { command -v ip && command -v nft; } >/dev/null || need_packages iproute2 nftables
    ip netns add "$host_prefix-try" 2>/dev/null || skip "network namespaces are not permitted here"
    local code=0
    ip netns exec "$host_prefix-try" nft add table inet cut 2>/dev/null || code=$?
    ip netns del "$host_prefix-try"
    ((code == 0)) || skip "packet filters (nftables) are not permitted here"
}

# Namespaces of scripts that were killed; their names hold the process.
sweep_hosts() {
    local name pid
    for name in $(ip netns list | sed -n 's/^\(sheep-[0-9]*-[^ ]*\).*/\1/p'); do
        pid=${name#sheep-} && pid=${pid%%-*}
        [[ -d /proc/$pid ]] || ip netns del "$name" 2>/dev/null || true
    done
}

# make_hosts N: N hosts without sheep, all links whole.
make_hosts() {
    need_hosts
    sweep_hosts
    trap 'remove_hosts $?' EXIT
    hosts=$1
    local i switch=$host_prefix-switch name
    ip netns add "$switch"
    ip -n "$switch" link add bridge type bridge
    ip -n "$switch" addr add 10.99.0.254/24 dev bridge
    ip -n "$switch" link set bridge up
    dog_at_the_switch
    for ((i = 0; i < hosts; i++)); do
        name=$(host_name "$i")
        ip netns add "$name"
        ip -n "$switch" link add "port$i" type veth peer name eth0 netns "$name"
        ip -n "$switch" link set "port$i" master bridge up
        ip -n "$name" addr add "$(host_addr "$i")/24" dev eth0
        ip -n "$name" link set lo up
        ip -n "$name" link set eth0 up
        on_host "$i" nft -f - <<'NFT'
table inet cut {
    set deaf_to { type ipv4_addr; }
    chain arriving { type filter hook input priority 0; ip saddr @deaf_to counter drop; }
}
NFT
    done
    export SHEEPDOG_DOG_ADDR=$dir/0/sock
}

# dog asks other sheep too, by their addresses; so it runs where it reaches all that is plugged in, whatever links are cut.
dog_at_the_switch() {
    mkdir "$dir/bin"
    printf '#!/bin/sh\nexec ip netns exec %q %q "$@"\n' "$host_prefix-switch" "$(command -v dog)" >"$dir/bin/dog"
    chmod +x "$dir/bin/dog"
    export PATH=$dir/bin:$PATH
}

remove_hosts() {
    local name
    for name in $(ip netns list | sed -n "s/^\\($host_prefix-[^ ]*\\).*/\\1/p"); do ip netns del "$name" || true; done
    clean_up "$1"
}

# ---- links ----------------------------------------------------------------------------------------------------------

# Packets are dropped where they arrive, as a broken cable or switch would: the sender gets no error.

# cut_way A B: what A sends does not reach B any more.
cut_way() { on_host "$2" nft add element inet cut deaf_to "{ $(host_addr "$1") }"; }
cut_link() { cut_way "$1" "$2" && cut_way "$2" "$1"; }
# Mending what is whole is no error.
mend_way() {
    cut_way "$1" "$2"
    on_host "$2" nft delete element inet cut deaf_to "{ $(host_addr "$1") }"
}
mend_link() { mend_way "$1" "$2" && mend_way "$2" "$1"; }
# The cable of a whole host.
unplug() { ip -n "$host_prefix-switch" link set "port$1" down; }
plug_in() { ip -n "$host_prefix-switch" link set "port$1" up; }
mend_all() {
    local i
    for ((i = 0; i < hosts; i++)); do
        plug_in "$i"
        on_host "$i" nft flush set inet cut deaf_to
    done
}
# All bytes that have arrived at a host, with the headers of their packets.
arrived_bytes() { on_host "$1" cat /sys/class/net/eth0/statistics/rx_bytes; }
dropped_packets() { on_host "$1" nft list table inet cut | sed -n 's/.*counter packets \([0-9]*\).*/\1/p'; }

# ---- sheep on hosts -------------------------------------------------------------------------------------------------

start_host() {
    local words=(sheep -c local "$dir/$1" -z "$1" -y "$(host_addr "$1")" -b "$(host_addr "$1")")
    # Every other one has its clients on threads of their own.
    (($1 % 2)) || words+=(--io-threads 3)
    show "${words[@]}" "${@:2}"
    on_host "$1" "${words[@]}" "${@:2}"
}
host_pids() { sheep_with "$dir/$1"; }
host_ended() { [[ -z $(host_pids "$1") ]]; }
# signal_hosts SIGNAL N...: to all at once, as far as they are up.
signal_hosts() {
    local i pids=()
    for i in "${@:2}"; do mapfile -t -O "${#pids[@]}" pids < <(host_pids "$i"); done
    show kill "-$1" "${pids[@]}"
    ((${#pids[@]} == 0)) || kill "-$1" "${pids[@]}"
}
kill_hosts() {
    local i
    signal_hosts KILL "$@"
    for i in "$@"; do wait_for 20 "the end of host $i's sheep" host_is_killed "$i"; done
}
# A sheep that was just starting may have become another process meanwhile.
host_is_killed() {
    local pids
    mapfile -t pids < <(host_pids "$1")
    ((${#pids[@]} == 0)) || { kill -KILL "${pids[@]}" && return 1; }
}
# Does host $1's sheep list the cluster as running with $2 members?
host_sees() {
    [[ $(timeout 5 dog cluster info -a "$dir/$1/sock" 2>/dev/null) == 'Cluster status: running'* ]] &&
        [[ $(timeout 5 dog node list -r -a "$dir/$1/sock" | wc -l) == "$2" ]]
}
# start_hosts N COPIES [OPTIONS...]: a formatted cluster; OPTIONS are for each sheep.
start_hosts() {
    local i
    make_hosts "$1"
    for ((i = 0; i < $1; i++)); do start_host "$i" "${@:3}"; done
    wait_for 20 "$1 members" members_are "$1"
    run dog cluster format "--copies=$2"
    for ((i = 0; i < $1; i++)); do wait_for 20 "host $i in a running cluster" host_sees "$i" "$1"; done
}
scenario_with_hosts() {
    use_build "${SHEEPDOG_BUILD:-debug}"
    make_dir sheep
    start_hosts "$@"
}

# ---- what is demanded at the end ------------------------------------------------------------------------------------

# Nobody lacks a copy. Says nothing of members that are down.
repaired() {
    local behind
    behind=$(timeout 20 dog node recovery -r) && [[ -z $behind ]]
}
# in_sync NAME [-s TAG]: every copy that should exist is in sync.
in_sync() { repaired && timeout 60 dog vdi check -e "${@:2}" "$1"; }

# copies_alike NAME [-s TAG]: all copies are compared, block by block; nothing was missing, different, or mended.
# To be called before anything is read through all sheep: reads mend what they find damaged.
copies_alike() {
    local said
    said=$(timeout 250 dog vdi check "${@:2}" "$1" 2>&1) || die "dog vdi check of $* ended with $?:"$'\n'"$said"
    said=$(tr '\r' '\n' <<<"$said" | grep -v '%' || true)
    [[ $said == "finish check&repair $1" ]] || die "the copies of $* are not alike:"$'\n'"$said"
}
