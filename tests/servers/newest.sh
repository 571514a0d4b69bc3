#!/bin/sh
# The suite on the newest interpreters, and tests/servers with the newest servers: those of
# Debian unstable, which debootstrap puts into a folder.
#
#     tests/servers/newest.sh [folder]
#
# The folder (.servers/newest-base) is made anew when it is older than a day, or FRESH is set.
# PYTHON runs tests/servers, out here, and docs/servers.md is written: with Debian's columns too
# if `make test-servers` has run before.  It takes root, debootstrap and unshare.  The exit status
# is 1 if anything failed.

set -eu
cd "$(dirname "$0")/../.."
base=$(realpath -m "${1:-.servers/newest-base}")
results=""
# What was chosen for the interpreter out here, by make too, is not for those in the folder.
unset ARGS MAKEFLAGS FASTSMTP_BUILD_EXTENSION FASTSMTP_IMPL FASTSMTP_SERVERS PIP_FIND_LINKS

for tool in debootstrap setpriv unshare chroot; do
    command -v "$tool" >/dev/null || { echo "$tool not found" >&2; exit 2; }
done
[ "$(id -u)" = 0 ] || { echo "not root" >&2; exit 2; }

# All that follows runs in a namespace whose processes end when this one does, killed or not.
if [ $$ != 1 ]; then
    trap 'kill -KILL $! 2>/dev/null || :' EXIT
    trap 'exit 130' HUP INT TERM
    setpriv --pdeathsig KILL unshare --pid --fork --kill-child --mount-proc \
        "tests/servers/${0##*/}" "$base" &
    wait $!
    exit
fi

# Run a command in the folder, with devices, in a namespace whose mounts end with it.
inside() {
    BASE="$base" unshare --mount --pid --fork --kill-child sh -ec '
        mount -t proc proc "$BASE/proc"
        mount --rbind /dev "$BASE/dev"
        mount -t tmpfs -o mode=1777 tmpfs "$BASE/tmp"
        exec chroot "$BASE" env HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 "$@"
    ' sh "$@"
}

# CPython from the release that is Debian's python3 on.
pythons() {
    inside sh -c '
        oldest=$(apt-cache depends python3-minimal | sed -n "s/.*Depends: \(python3\.[0-9]*\)-.*/\1/p")
        apt-cache pkgnames python3. | grep -x "python3\.[0-9]*" | sort -V | sed -n "/^$oldest\$/,\$p"'
}

build() {
    # What was fetched for the old folder does not fit the new one.
    rm -rf --one-file-system "$base" .servers/newest
    mkdir -p "$base"
    debootstrap --variant=minbase unstable "$base" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} >"$base.log"
    # A mirror may be some days old.
    inside apt-get -qq -o Acquire::Check-Valid-Until=no update
    packages="ca-certificates gcc libc6-dev make openssl procps pypy3 pypy3-venv"
    for python in $(pythons); do
        packages="$packages $python $python-dev $python-venv lib$python-testsuite"
    done
    # shellcheck disable=SC2086
    inside env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq install --no-install-recommends $packages >>"$base.log" 2>&1
    touch "$base/.complete"
}

# Packages of Python come from the index that is used out here.
configure() {
    for file in /etc/resolv.conf /etc/hosts /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do
        [ ! -e "$file" ] || cp -L "$file" "$base$file"
    done
}

copy_repository() {
    mkdir -p "$base/fastsmtp"
    find "$base/fastsmtp" -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} +
    tar -c --exclude='*.so' --exclude=__pycache__ --anchored --exclude=build -- * .ci |
        tar -x -C "$base/fastsmtp" --no-same-owner
}

# record "what it is" command ...
record() {
    what=$1
    shift
    echo "== $what"
    if "$@"; then result=passed; else result=FAILED; fi
    results="$results$what: $result
"
}

version_of() {
    inside "$1" -c 'import platform, sys
print(platform.python_implementation(), sys.version.split()[0], *(
    "%d.%d.%d" % pypy[:3] for pypy in [getattr(sys, "pypy_version_info", None)] if pypy))'
}

# PyPy 8 may abort when one process has run many test files.  For it there are only old wheels of
# hypothesis, and the new source wants Rust.
suite() {
    inside env PIP_ONLY_BINARY=hypothesis make --no-print-directory -C /fastsmtp test PYTHON="$1" \
        ARGS="-q -n 3 --dist loadfile"
}

# Not aiosmtpd, which is the same everywhere.
servers() {
    rm -f .servers/results/*-newest.json
    FASTSMTP_SERVERS=exim,opensmtpd,postfix,dovecot FASTSMTP_SERVERS_BASE="$base" \
        make --no-print-directory test ARGS="-q -n 2 tests/servers" &&
        "${PYTHON:-python3}" tests/servers/matrix.py
}

if [ -n "${FRESH-}" ] || [ -z "$(find "$base/.complete" -mtime -1 2>/dev/null)" ]; then
    build
fi
configure
copy_repository
newest=$(pythons)
[ -n "$newest" ] || { echo "no CPython in $base" >&2; exit 2; }
for python in $newest pypy3; do
    record "$(version_of "$python")" suite "$python"
done
record "$(inside apt-cache show --no-all-versions exim4-daemon-heavy opensmtpd postfix dovecot-core |
    sed -n 's/^Package: //p; s/^Version: //p' | paste -sd ' ')" servers
printf '\n%s' "$results"
case $results in *FAILED*) exit 1 ;; esac
