#!/bin/bash
# The inside of `machine.booted`: from a fresh set of namespaces to systemd as PID 1 over a
# copy-on-write view of this machine's files. Called in them by `unshare`; everything it mounts goes
# with them. Arguments: an empty folder to mount on, the folder to take for / (usually / itself), and
# folders whose content is copied over it first.
set -euo pipefail
base=$1
below=$2
shift 2

mount --make-rprivate /
mount -t tmpfs -o mode=755 nvr-backup-tests "$base"
mkdir "$base/upper" "$base/work" "$base/root"
for image; do cp -a "$image/." "$base/upper/"; done
mkdir -p "$base/upper/.written" "$base/upper/.outside"
mount -t overlay overlay -o "lowerdir=$below,upperdir=$base/upper,workdir=$base/work" "$base/root"
root=$base/root

mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,ro,bind "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"

# The hierarchies again, seen from the cgroup that is this namespace's root.
places=$(cat /proc/self/cgroup)
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
else
  mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
  while IFS=: read -r _ controllers _; do
    case $controllers in
      '') at=unified kind=cgroup2 options=rw ;;
      name=*) at=${controllers#name=} kind=cgroup options=none,$controllers ;;
      *) at=$controllers kind=cgroup options=$controllers ;;
    esac
    [ -d "/sys/fs/cgroup/$at" ] || continue
    mkdir "$root/sys/fs/cgroup/$at"
    mount -t "$kind" -o "$options" cgroup "$root/sys/fs/cgroup/$at"
  done <<<"$places"
fi

mount -t tmpfs -o mode=755 tmpfs "$root/dev"
while read -r name minor_major; do
  # shellcheck disable=SC2086 # two numbers
  mknod -m 666 "$root/dev/$name" c $minor_major
done <<<'null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0'
ln -s /proc/self/fd "$root/dev/fd"
ln -s fd/0 "$root/dev/stdin"
ln -s fd/1 "$root/dev/stdout"
ln -s fd/2 "$root/dev/stderr"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"

: >"$root/etc/fstab"
rm -f "$root/etc/machine-id"
tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
# Whatever this machine runs is not to run there.
units=$root/etc/systemd/system
mkdir -p "$units" "$root/etc/systemd/journald.conf.d"
cat >"$units/nvr-backup-tests.target" <<'END'
[Unit]
Requires=sysinit.target
Wants=dbus.socket systemd-journald.service
After=sysinit.target dbus.socket systemd-journald.service
END
cat >"$root/etc/systemd/journald.conf.d/tests.conf" <<'END'
[Journal]
Storage=volatile
ReadKMsg=no
RateLimitIntervalSec=0
ForwardToSyslog=no
END
for unit in systemd-udevd.service systemd-udev-trigger.service systemd-udevd-kernel.socket \
  systemd-udevd-control.socket systemd-sysctl.service systemd-modules-load.service \
  systemd-logind.service systemd-timesyncd.service systemd-resolved.service \
  systemd-networkd.service systemd-remount-fs.service systemd-random-seed.service \
  systemd-pstore.service systemd-firstboot.service systemd-journal-flush.service \
  systemd-hwdb-update.service systemd-update-done.service ldconfig.service \
  dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount \
  sys-kernel-config.mount sys-fs-fuse-connections.mount proc-sys-fs-binfmt_misc.automount \
  swap.target cryptsetup.target remote-fs.target apparmor.service keyboard-setup.service \
  console-setup.service; do
  ln -sf /dev/null "$units/$unit"
done

mount --bind "$base/upper" "$root/.written"
cd "$root"
pivot_root . .outside
umount -l /.outside
mount --make-rshared / # without this, LoadCredential= gives an empty folder
init=/lib/systemd/systemd
[ -x $init ] || init=/usr/lib/systemd/systemd
exec env -i container=nvr-backup-tests PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
  "$init" --system --unit=nvr-backup-tests.target </dev/null
