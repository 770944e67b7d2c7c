#!/bin/sh
# Installs nvr-backup as a systemd service, or upgrades it: run it again from a newer checkout.
#
#   sudo deploy/install.sh                 install or upgrade
#   deploy/install.sh --dry-run            only say what it would do
#   sudo deploy/install.sh --uninstall     remove it; configuration, secrets and state stay
#   sudo deploy/install.sh --uninstall --purge     remove these as well
#
#   --python FILE    the Python to use (3.11 or newer, not below /root or /home)
#
# What it makes:
#   /opt/nvr-backup/                  the program, in a virtual environment: current/bin/nvr-backup
#   /usr/local/bin/nvr-backup         the command
#   /etc/systemd/system/nvr-backup.service
#   /etc/nvr-backup/config.toml       a first configuration, if there is none
#   /etc/nvr-backup/config.example.toml
#   /etc/nvr-backup/credentials/      for secrets; only root may look
#
# A file that was edited is never overwritten: the new version is put beside it as FILE.new. The new
# program is complete before it takes the place of the old one, so it can be interrupted at any time.
# Footage in the stores is never touched.
set -eu
umask 022
unset CDPATH

prefix=/opt/nvr-backup
command=/usr/local/bin/nvr-backup
settings=/etc/nvr-backup
units=/etc/systemd/system
service=nvr-backup.service
oldest_systemd=247
record=$prefix/installed.sha256
pending=$prefix/restart-pending # what runs is older than what is installed
checkout=$(cd -- "$(dirname -- "$0")/.." && pwd -P)

dry_run=
restart_due=
purge=
uninstall=
python=

say() { printf '%s\n' "$*"; }
fail() {
  printf 'install.sh: %s\n' "$1" >&2
  shift
  for line; do printf '  %s\n' "$line" >&2; done
  exit 1
}
usage() { sed -n '2,/^set -eu/{/^set -eu/!s/^# \{0,1\}//p;}' "$0"; }

# step TEXT COMMAND...: says what it does, and does it unless this is a dry run.
step() {
  if [ -n "$dry_run" ]; then
    say "would: $1"
    return
  fi
  say "$1"
  shift
  "$@"
}

digest() { sha256sum <"$1" | cut -d ' ' -f 1; }
systemd_runs() { [ -d /run/systemd/system ]; }
is_active() { systemd_runs && systemctl --quiet is-active "$service"; }

# --- what is there

check_machine() {
  if [ -z "$dry_run" ] && [ "$(id -u)" -ne 0 ]; then
    fail "it changes /opt and /etc: run it as root (sudo deploy/install.sh)." \
      "To see first what it would do: deploy/install.sh --dry-run"
  fi
  command -v systemctl >/dev/null 2>&1 ||
    fail "there is no systemd on this machine." "docs/install.md shows the way without it."
  version=$(systemctl --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
  if [ "${version:-0}" -lt "$oldest_systemd" ]; then
    fail "systemd ${version:-of unknown version} is too old: $oldest_systemd is needed."
  fi
  [ -f "$checkout/requirements.lock" ] && [ -f "$checkout/pyproject.toml" ] ||
    fail "$checkout is no checkout of nvr-backup: run the script where it belongs."
}

# Whether a Python will do; says why not. The service cannot see /root, /home and /tmp.
suits() {
  "$1" - <<'END'
import os, sys
if sys.version_info < (3, 11):
    sys.exit("is %d.%d, and 3.11 is needed" % sys.version_info[:2])
real = os.path.realpath(sys.base_prefix) + "/"
if real.startswith(("/root/", "/home/", "/tmp/", "/run/")):
    sys.exit("is in " + real + ", where a service may not look")
try:
    import ensurepip, venv
except ImportError:
    sys.exit("has no venv module (Debian, Ubuntu, Raspberry Pi OS: apt install python3-venv)")
END
}

find_python() {
  if [ -n "$python" ]; then
    reason=$(suits "$python" 2>&1) || fail "$python $reason."
    return
  fi
  reasons=
  for candidate in /usr/bin/python3 /usr/local/bin/python3 \
    /usr/bin/python3.14 /usr/bin/python3.13 /usr/bin/python3.12 /usr/bin/python3.11 \
    /usr/local/bin/python3.14 /usr/local/bin/python3.13 /usr/local/bin/python3.12; do
    [ -x "$candidate" ] || continue
    if reason=$(suits "$candidate" 2>&1); then
      python=$candidate
      return
    fi
    reasons="$reasons$candidate $reason. "
  done
  fail "no suitable Python was found. $reasons" \
    "Install Python 3.11 or newer with its venv module, or name one with --python."
}

# The program's name in $prefix/releases: its version, and a digest of all that goes into it.
release_name() {
  version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$checkout/pyproject.toml" | head -n 1)
  inputs=$(
    cd "$checkout"
    "$python" -c 'import sys; print(sys.version, sys.base_prefix)'
    find nvr_backup pyproject.toml requirements.lock requirements-build.lock README.md LICENSE \
      -name __pycache__ -prune -o -type f -print | LC_ALL=C sort | xargs -d '\n' sha256sum
  )
  say "$version-$(printf '%s' "$inputs" | sha256sum | cut -c 1-12)"
}

# --- the program

install_program() {
  release=$(release_name)
  home=$prefix/releases/$release
  if [ -e "$home/complete" ] && [ "$(readlink "$prefix/current" || true)" = "releases/$release" ]; then
    say "The program is up to date ($release)."
    return
  fi
  if [ ! -e "$home/complete" ]; then
    step "Installing $release with $python into $home" make_release "$home"
  fi
  restart_due=yes
  step "Making it the one that is used: $prefix/current" switch_to "$release"
}

make_release() {
  rm -rf "$1"
  mkdir -p "$1"
  incomplete=$1
  trap 'rm -rf "$incomplete"' EXIT
  trap 'exit 1' HUP INT TERM
  "$python" -m venv "$1"
  # Names, versions and checksums of everything are those of the project's own lock files.
  pip="$1/bin/python -m pip --disable-pip-version-check --no-input --quiet install"
  # --no-deps: the locks name everything.
  $pip --no-deps --require-hashes -r "$checkout/requirements-build.lock"
  $pip --no-deps --require-hashes --no-build-isolation --use-pep517 -r "$checkout/requirements.lock"
  $pip --no-deps --no-build-isolation --use-pep517 "$checkout"
  "$1/bin/nvr-backup" --version
  : >"$1/complete"
  if command -v restorecon >/dev/null 2>&1; then restorecon -R "$prefix"; fi
  trap - EXIT HUP INT TERM
}

switch_to() {
  : >"$pending"
  ln -sfn "releases/$1" "$prefix/current.new"
  mv -T "$prefix/current.new" "$prefix/current"
}

remove_old_releases() {
  for old in "$prefix"/releases/*; do
    if [ -d "$old" ] && [ "$old" != "$prefix/releases/$release" ]; then
      step "Removing the old program $old" rm -rf "$old"
    fi
  done
}

install_command() {
  if [ "$(readlink "$command" || true)" = "$prefix/current/bin/nvr-backup" ]; then return; fi
  if [ -e "$command" ] || [ -L "$command" ]; then
    say "$command is something else and stays; the command is $prefix/current/bin/nvr-backup."
    return
  fi
  step "Making the command $command" ln -s "$prefix/current/bin/nvr-backup" "$command"
}

# --- files that an administrator may edit

# The digest with which we put a file there; empty when we did not.
recorded() {
  if [ -f "$record" ]; then sed -n "s|^\([0-9a-f]*\)  $1\$|\1|p" "$record"; fi
}

remember() {
  { if [ -f "$record" ]; then sed "\|  $1\$|d" "$record"; fi; say "$2  $1"; } >"$record.new"
  mv "$record.new" "$record"
}

put() {
  if [ "$2" = "$units/$service" ]; then : >"$pending"; fi
  cp "$1" "$2.installing"
  chmod 644 "$2.installing"
  mv "$2.installing" "$2"
  rm -f "$2.new"
  remember "$2" "$(digest "$2")"
}

restart_for() {
  if [ "$1" = "$units/$service" ]; then restart_due=yes; fi
}

# place SOURCE FILE: install or renew a file that nobody edited.
place() {
  new=$(digest "$1")
  if [ ! -e "$2" ] && [ ! -L "$2" ]; then
    restart_for "$2"
    step "Writing $2" put "$1" "$2"
    return
  fi
  if [ -f "$2" ] && [ ! -L "$2" ]; then
    now=$(digest "$2")
    if [ "$now" = "$new" ]; then
      if [ -z "$dry_run" ] && [ "$(recorded "$2")" != "$new" ]; then remember "$2" "$new"; fi
      if [ -e "$2.new" ]; then step "Removing $2.new" rm -f "$2.new"; fi
      return
    fi
    if [ "$now" = "$(recorded "$2")" ]; then
      restart_for "$2"
      step "Renewing $2" put "$1" "$2"
      return
    fi
  fi
  if [ -f "$2.new" ] && [ "$(digest "$2.new")" = "$new" ]; then
    say "$2 was edited and stays; compare it with $2.new."
    return
  fi
  step "$2 was edited and stays; the new version is $2.new" cp "$1" "$2.new"
}

install_files() {
  if [ ! -d "$settings/credentials" ]; then
    step "Making $settings/credentials, for root alone" make_settings_folders
  fi
  # Empty files set nothing; they show what goes where.
  for name in sources.home.password stores.offsite.credentials_file; do
    if [ ! -e "$settings/credentials/$name" ]; then
      step "Making the empty $settings/credentials/$name" make_secret "$settings/credentials/$name"
    fi
  done
  place "$checkout/config.example.toml" "$settings/config.example.toml"
  if [ ! -e "$settings/config.toml" ]; then
    step "Writing a first $settings/config.toml" cp "$checkout/deploy/config.toml" "$settings/config.toml"
  fi
  place "$checkout/deploy/systemd/$service" "$units/$service"
}

make_settings_folders() {
  mkdir -p "$settings"
  chmod 755 "$settings"
  mkdir -m 700 "$settings/credentials"
}

make_secret() { (umask 077 && : >"$1"); }

# --- install

install_all() {
  check_machine
  find_python
  if [ -z "$dry_run" ]; then mkdir -p "$prefix/releases"; fi
  install_program
  install_command
  install_files
  if ! systemd_runs; then
    say "systemd is not running here: it will see the unit when it does."
    return
  fi
  step "Telling systemd (daemon-reload)" systemctl daemon-reload
  if [ -z "$dry_run" ]; then
    complaints=$(systemd-analyze verify "$units/$service" 2>&1) || true
    if [ -n "$complaints" ]; then say "systemd remarks on the unit:" "$complaints"; fi
  fi
  if ! is_active; then
    if [ -z "$dry_run" ]; then
      rm -f "$pending"
      remove_old_releases
      next_steps
    fi
  elif [ -e "$pending" ] || { [ -n "$dry_run" ] && [ -n "$restart_due" ]; }; then
    restart
  else
    say "$service runs, and is up to date."
  fi
}

restart() {
  if [ -n "$dry_run" ]; then
    step "Restarting $service, if the configuration suits the new version"
  elif CREDENTIALS_DIRECTORY=$settings/credentials "$prefix/current/bin/nvr-backup" check-config; then
    step "Restarting $service; what was on its way goes on" systemctl restart "$service"
    rm -f "$pending"
    remove_old_releases
    systemctl --no-pager --lines 0 status "$service" || true
  else
    fail "the old version keeps running, because the new one cannot use the configuration." \
      "Mend it (above is why), then: systemctl restart nvr-backup"
  fi
}

next_steps() {
  cat <<END

nvr-backup is installed. Next:
  1. Say where the footage is and where it goes:   $settings/config.toml
  2. Put the password and the key into files:      $settings/credentials/
  3. Ask whether everything is in place:           nvr-backup doctor
  4. Start it, now and at every boot:              systemctl enable --now nvr-backup
docs/install.md has each step in full.
END
}

# --- uninstall

# drop FILE: remove a file of ours unless it was edited.
drop() {
  rm_new=
  if [ -e "$1.new" ]; then rm_new=$1.new; fi
  if [ ! -e "$1" ] && [ ! -L "$1" ]; then return; fi
  if [ -f "$1" ] && [ ! -L "$1" ] && [ "$(digest "$1")" = "$(recorded "$1")" ]; then
    step "Removing $1" rm -f "$1" ${rm_new:+"$rm_new"}
  else
    say "$1 was edited and stays."
    if [ -n "$rm_new" ]; then step "Removing $rm_new" rm -f "$rm_new"; fi
  fi
}

uninstall_all() {
  check_machine
  if [ -e "$units/$service" ] && systemd_runs; then
    step "Stopping and disabling $service" systemctl --quiet disable --now "$service"
  fi
  drop "$units/$service"
  drop "$settings/config.example.toml"
  if [ "$(readlink "$command" || true)" = "$prefix/current/bin/nvr-backup" ]; then
    step "Removing $command" rm -f "$command"
  fi
  if [ -d "$prefix" ]; then step "Removing $prefix" rm -rf "$prefix"; fi
  if systemd_runs; then
    step "Telling systemd (daemon-reload)" systemctl daemon-reload
    if [ -z "$dry_run" ]; then systemctl reset-failed "$service" 2>/dev/null || true; fi
  fi
  if [ -d "$units/$service.d" ]; then
    say "$units/$service.d holds changes of yours and stays."
  fi
  # With DynamicUser the folders are in private/, and links to them in their usual place.
  for kept in "$settings" /var/lib/nvr-backup /var/lib/private/nvr-backup \
    /var/cache/nvr-backup /var/cache/private/nvr-backup; do
    if [ ! -e "$kept" ] && [ ! -L "$kept" ]; then continue; fi
    if [ -n "$purge" ]; then
      step "Removing $kept" rm -rf "$kept"
    elif [ ! -L "$kept" ]; then
      say "$kept stays (--purge removes it)."
    fi
  done
}

while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry_run=yes ;;
    --uninstall) uninstall=yes ;;
    --purge) purge=yes ;;
    --python)
      [ $# -ge 2 ] || fail "--python needs a file."
      python=$2
      shift
      ;;
    --python=*) python=${1#--python=} ;;
    -h | --help)
      usage
      exit 0
      ;;
    *) fail "$1 is not known." "deploy/install.sh --help says what is." ;;
  esac
  shift
done
if [ -n "$purge" ] && [ -z "$uninstall" ]; then fail "--purge goes with --uninstall."; fi
case $python in
  '' | /*) ;;
  *) python=$(command -v -- "$python") || fail "there is no such Python." ;;
esac
if [ -n "$uninstall" ]; then uninstall_all; else install_all; fi
if [ -n "$dry_run" ]; then say "Nothing was changed."; fi
