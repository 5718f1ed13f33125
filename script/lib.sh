# shellcheck shell=bash
# What demo, test, bench and the scenarios share: packages, printing, waiting for events, sheep of one's own, and
# cleaning up after oneself. To be sourced.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}

# ---- printing -------------------------------------------------------------------------------------------------------

if [[ -t 1 ]]; then
    bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'
else
    bold='' green='' red='' plain=''
fi

chapter() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
say() { printf '%s\n' "$*"; }
die() {
    printf '%s%s%s\n' "$red" "$*" "$plain" >&2
    exit 1
}
# Ends a scenario that cannot run on this machine; script/test counts it as skipped.
skip() {
    printf 'skipped: %s\n' "$*"
    exit 77
}

# Prints a command as one would type it.
show() {
    local word words=()
    for word in "$@"; do
        [[ $word =~ ^[A-Za-z0-9_./:=,@%+~-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
        words+=("$word")
    done
    printf '%s$ %s%s\n' "$green" "${words[*]}" "$plain"
}
# Runs a command after showing it.
run() {
    show "$@"
    "$@"
}
# The same for a line of shell, for pipes and redirections.
run_line() {
    printf '%s$ %s%s\n' "$green" "$1" "$plain"
    eval "$1"
}

# ---- waiting --------------------------------------------------------------------------------------------------------

# wait_for SECONDS WHAT COMMAND...: polls the command until it succeeds, and dies if it does not in time.
wait_for() {
    local seconds=$1 what=$2 deadline=$((SECONDS + $1))
    shift 2
    until "$@" >/dev/null 2>&1; do
        ((SECONDS <= deadline)) || die "not within $seconds s: $what"
        sleep 0.05
    done
}
# Also true of a zombie: in a container nobody may be there to reap a daemon.
ended() { ! grep -q '^State:[[:space:]]*[^ZX[:space:]]' "/proc/$1/status" 2>/dev/null; }

# ---- expectations ---------------------------------------------------------------------------------------------------

# expect CODE PATTERN COMMAND...: the command ends with this code, within 20 s, and its output (both streams) has a line
# that matches the extended regular expression. The output is left in $output.
expect() {
    local code=$1 pattern=$2 got=0
    shift 2
    output=$(timeout 20 "$@" 2>&1 </dev/null | tr -d '\0') || got=$?
    ((got == code)) || die "'$*' ended with $got, expected $code; it said:"$'\n'"$output"
    grep -qE -- "$pattern" <<<"$output" || die "'$*' was expected to say '$pattern', but said:"$'\n'"$output"
    ! grep -q 'panicked at' <<<"$output" || die "'$*' panicked:"$'\n'"$output"
}

# ---- packages -------------------------------------------------------------------------------------------------------

as_root() { if ((EUID == 0)); then "$@"; else sudo "$@"; fi; }
# Prints nothing for a package that is not installed, and succeeds all the same.
version_of() { { dpkg-query -W -f='${db:Status-Status} ${Version}' "$1" 2>/dev/null || true; } | sed -n 's/^installed //p'; }

apt_install() {
    command -v apt-get >/dev/null || die "this needs the Debian packages $*, and there is no apt-get here"
    local log
    log=$(mktemp)
    show apt-get install --no-install-recommends "$@"
    if ! { as_root apt-get update && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y \
        --no-install-recommends --allow-downgrades "$@"; } >"$log" 2>&1; then
        tail -20 "$log" >&2
        die "could not install: $*"
    fi
    rm -f "$log"
}

# Installs those of the named Debian packages that are missing.
need_packages() {
    local package missing=() qemu=() versions
    for package in "$@"; do
        [[ $package == qemu-* ]] && qemu+=("$package")
        [[ -n $(version_of "$package") ]] || missing+=("$package")
    done
    # QEMU's packages load each other's modules, so all must come from one release.
    versions=$(for package in "${qemu[@]}"; do version_of "$package"; done | sort -u | wc -l)
    if [[ ${missing[*]} == *qemu-* ]] || ((versions > 1)); then
        local release
        release=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
        missing=("${missing[@]/#qemu-*/}" "${qemu[@]/%//$release}")
    fi
    # shellcheck disable=SC2206 # splitting drops the emptied words
    missing=(${missing[@]})
    ((${#missing[@]} == 0)) || apt_install "${missing[@]}"
}

# ---- a place of one's own, gone at the end --------------------------------------------------------------------------

keep=${KEEP:-}
owned_pids=()
dir=''

# Processes that this script started and that must not outlive it.
own() { owned_pids+=("$1"); }

# Makes the directory $dir. On a disk, not in memory: sheep bypass the page cache. Short: socket names have 107 bytes.
make_dir() {
    dir=$(mktemp -d "${SHEEPDOG_TEST_DIR:-/var/tmp}/$1.XXXXXX")
    trap 'clean_up $?' EXIT
    trap 'exit 130' INT TERM
}

clean_up() {
    trap - EXIT INT TERM
    local pid
    for pid in "${owned_pids[@]}" $(all_sheep_pids); do
        kill -9 "$pid" 2>/dev/null || true
    done
    # A directory can only be removed when nobody writes to it any more.
    for pid in "${owned_pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    if [[ -n $dir && -d $dir ]]; then
        if [[ -n $keep ]]; then
            say "left for you: $dir"
        else
            rm -rf "$dir" 2>/dev/null || { sleep 0.5 && rm -rf "$dir"; }
        fi
    fi
    exit "$1"
}

# ---- sheep ----------------------------------------------------------------------------------------------------------

# Puts the programs of one build (debug, release) on the PATH.
use_build() {
    export PATH="$target/$1:$PATH"
    [[ -x $target/$1/sheep && -x $target/$1/dog ]] || die "no sheep and dog in $target/$1: cargo build -p sheep -p dog"
}

port_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Finds ten TCP ports in a row that nobody listens on: $port is their number without the last digit. Below 10000, since
# tgt reads four digits only. PORT_FIRST is tried first.
choose_ports() {
    local last
    for port in ${PORT_FIRST:-} $(shuf -i 610-990 -n 100); do
        for last in 0 1 2 3 4 5 6 7 8 9; do
            port_free "$port$last" || continue 2
        done
        export SHEEPDOG_DOG_PORT=${port}0
        return
    done
    die "found no ten free TCP ports in a row"
}

# Prints the process of each sheep that has a word like this pattern on its command line.
sheep_with() {
    local proc name word words
    for proc in /proc/[0-9]*; do
        # Without another process for each that there is: this is called many times over.
        { read -r name <"$proc/comm"; } 2>/dev/null || continue
        [[ $name == sheep ]] || continue
        words=()
        mapfile -d '' -t words 2>/dev/null <"$proc/cmdline" || true
        # shellcheck disable=SC2053 # a pattern
        for word in "${words[@]}"; do
            [[ $word != $1 ]] || { echo "${proc#/proc/}" && break; }
        done
    done
}
# The process of the sheep that uses $dir/$1.
sheep_pid() {
    local pid
    pid=$(sheep_with "$dir/$1" && sheep_with "$dir/$1,*")
    [[ -n $pid ]] && echo "$pid"
}
all_sheep_pids() { [[ -z $dir ]] || sheep_with "$dir/*"; }

# Options that all sheep of a scenario get.
sheep_options=()
start_sheep() { run sheep -c local "$dir/$1" -z "$1" -p "$port$1" "${sheep_options[@]}" "${@:2}"; }
kill_sheep() {
    local i pids=()
    for i in "$@"; do pids+=("$(sheep_pid "$i")"); done
    run kill -9 "${pids[@]}"
    for i in "${pids[@]}"; do wait_for 5 "the end of process $i" ended "$i"; done
}

members() { dog node list -r 2>/dev/null | wc -l; }
members_are() { [[ $(members) == "$1" ]]; }
cluster_runs() { [[ $(dog cluster info "$@" 2>/dev/null) == 'Cluster status: running'* ]]; }
# Of the sheep $1: does it list the cluster as running with $2 members?
sees() { cluster_runs -p "$port$1" && [[ $(dog node list -r -p "$port$1" | wc -l) == "$2" ]]; }

# start_cluster N [COPIES]: N sheep, formatted.
start_cluster() {
    local i
    choose_ports
    for ((i = 0; i < $1; i++)); do start_sheep "$i"; done
    wait_for 20 "$1 members" members_are "$1"
    run dog cluster format "--copies=${2:-3}"
    wait_for 20 "a running cluster" cluster_runs
}

nbd_uri() { echo "nbd+unix:///$1?socket=$dir/${2:-0}/nbd.sock"; }

# What a scenario begins with: the development build, a directory, and N sheep.
scenario_with_sheep() {
    use_build "${SHEEPDOG_BUILD:-debug}"
    make_dir sheep
    (($1 == 0)) || start_cluster "$@"
}

# No sheep of this scenario has panicked, however it ended.
no_panics() {
    ! grep -H 'panicked at' "$dir"/*/sheep.log 2>/dev/null || die "a sheep panicked"
}
