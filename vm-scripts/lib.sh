# shellcheck shell=bash
# Functions shared by the scripts in this directory. To be sourced.

repo_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck disable=SC2034 # used by the scripts that source this
scripts_dir=$repo_dir/vm-scripts
cache_dir=$repo_dir/.vm-cache
# shellcheck disable=SC2034
all_kernels=(6.1 6.12)

# mkfs.btrfs, depmod and others live in sbin, which an ordinary user's PATH lacks. Rust from rustup comes last: it is there
# even where the login shell's set-up was not read.
export PATH=$PATH:/usr/sbin:/sbin:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin

say() { printf '%s\n' "$*" >&2; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit "${die_code:-2}"
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "needs root to run: $* (and there is no sudo)"
    fi
}

# with_lock NAME COMMAND...: one at a time over all runs on this checkout.
with_lock() {
    local name=$1 fd rc=0
    shift
    mkdir -p "$cache_dir"
    exec {fd}>"$cache_dir/$name.lock"
    if ! flock --nonblock "$fd"; then
        say "waiting for another run that holds $cache_dir/$name.lock"
        flock "$fd"
    fi
    "$@" || rc=$?
    exec {fd}>&-
    return "$rc"
}

# kernel_package VERSION: the Debian 12 meta-package of a guest kernel.
kernel_package() {
    case $1 in
    6.1) echo linux-image-cloud-amd64 ;;
    6.12) echo linux-image-6.12-cloud-amd64 ;;
    *) die "no guest kernel '$1' (known: ${all_kernels[*]})" ;;
    esac
}

package_installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

apt_lists_updated=
# A machine may have package sources of its own that are out of reach: only what is installed afterwards decides.
update_package_lists() {
    [ -z "$apt_lists_updated" ] || return 0
    apt_lists_updated=yes
    say "updating the package lists"
    as_root apt-get update -qq >&2 || warn "apt-get update failed; going on with the package lists there are"
}

# install_packages PACKAGE...: those that are missing.
install_packages() {
    local package missing=()
    for package in "$@"; do
        package_installed "$package" || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || die "missing packages: ${missing[*]} (no apt-get here to install them)"
    update_package_lists
    say "installing ${missing[*]}"
    # Its hundreds of lines are of interest only if it fails.
    local log
    log=$(mktemp)
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        rm -f "$log"
        die "could not install: ${missing[*]}"
    }
    rm -f "$log"
}

# version_at_least HAVE WANT
version_at_least() {
    [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

# The Rust version the workspace asks for.
wanted_rust() { sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$repo_dir/Cargo.toml" | head -n 1; }

rust_new_enough() {
    local have
    have=$(cd "$repo_dir" && cargo --version 2>/dev/null | awk '{print $2}')
    [ -n "$have" ] && version_at_least "$have" "$(wanted_rust)"
}

# Debian 12's own cargo is too old; the compiler it keeps for browsers (cargo-web, rustc-web) is not.
ensure_rust() {
    # Certificates: cargo fetches crates over HTTPS.
    install_packages gcc libc6-dev ca-certificates
    rust_new_enough && return 0
    install_packages cargo-web rustc-web
    hash -r
    rust_new_enough ||
        die "needs Rust $(wanted_rust) or newer; found $(cargo --version 2>/dev/null || echo none). Install it from https://rustup.rs"
}

# wait_until SECONDS COMMAND...: true as soon as COMMAND succeeds, false when time is up.
wait_until() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.1
    done
}

# stop_process PID: TERM, then KILL after ten seconds. For processes this shell started.
stop_process() {
    local pid=$1
    kill "$pid" 2>/dev/null || return 0
    wait_until 10 process_gone "$pid" || kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
}

# A zombie is gone: it only waits for its exit code to be read.
process_gone() {
    local state
    state=$(awk '{sub(/^.*\) /, ""); print $1}' "/proc/$1/stat" 2>/dev/null) || return 0
    [ -z "$state" ] || [ "$state" = Z ]
}

super_field() { # IMAGE FIELD
    btrfs inspect-internal dump-super "$1" | awk -v field="$2" '$1 == field {print $2; exit}'
}
