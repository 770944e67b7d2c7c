#!/bin/sh
# tests/systemd on the systemd of other releases of Debian: 247 (11, bullseye) and 257 (13, trixie).
# Their root file systems are made by debootstrap from Debian's packages, once, in $ROOTFS. Takes some
# ten minutes, so it is no part of `.ci/run`. Call it by `make systemd-matrix`, as root, with debootstrap
# and patchelf installed. Arguments go to pytest.
#
#   SUITES="bullseye trixie"   which      MIRROR=http://deb.debian.org/debian   from where
#   ROOTFS=build/rootfs        where they are kept
#   PYTEST="python -m pytest"
set -eu
cd -- "$(dirname -- "$0")/../.."
rootfs=$(mkdir -p "${ROOTFS:-build/rootfs}" && cd "${ROOTFS:-build/rootfs}" && pwd -P)
for program in debootstrap patchelf; do
  if ! command -v $program >/dev/null; then
    echo "$program is missing: apt install debootstrap patchelf" >&2
    exit 1
  fi
done
failed=
for suite in ${SUITES:-bullseye trixie}; do
  root=$rootfs/$suite
  if [ ! -e "$root/complete" ]; then
    echo "Making Debian $suite in $root (a minute or two)"
    rm -rf "$root"
    debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,jq "$suite" "$root" \
      "${MIRROR:-http://deb.debian.org/debian}" >"$root.log" 2>&1 || { tail "$root.log"; exit 1; }
    touch "$root/complete"
  fi
  echo "On $(chroot "$root" systemctl --version | head -n 1):"
  TESTS_NEED_SYSTEMD=1 TESTS_SYSTEMD_ROOT=$root ${PYTEST:-python3 -m pytest} tests/systemd "$@" || failed=yes
done
[ -z "$failed" ]
