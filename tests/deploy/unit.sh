#!/usr/bin/env bash
# Boots Debian with larder's unit in a container. Tests start, reload, watchdog, crash and stop:
# bash tests/deploy/unit.sh [target/release/larder]
#
# Needs root, a kernel that lets systemd-nspawn boot, Debian's debootstrap and systemd-container, and two minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
larder=$(realpath "${1:-target/release/larder}")
machine=$(mktemp -d /var/tmp/larder-unit-XXXXXX)
# The root folder of a system is readable by all users.
chmod 755 "$machine"
trap 'rm -rf --one-file-system "$machine"' EXIT

debootstrap --variant=minbase --include=systemd,systemd-sysv,curl bookworm "$machine" >"$machine.log" 2>&1 ||
    { tail -3 "$machine.log"; exit 2; }
rm -f "$machine.log"
install -m 755 "$larder" "$machine/usr/bin/larder"
install -D -m 644 config/docker-host.toml "$machine/etc/larder/larder.toml"
install -m 644 deploy/systemd/larder.service "$machine/etc/systemd/system/"
cat >"$machine/etc/systemd/system/checks.service" <<'UNIT'
[Unit]
After=multi-user.target
[Service]
ExecStart=/bin/bash /root/checks
UNIT
mkdir -p "$machine/etc/systemd/system/multi-user.target.wants"
ln -s ../checks.service "$machine/etc/systemd/system/multi-user.target.wants/checks.service"

cat >"$machine/root/checks" <<'CHECKS'
exec >/root/report 2>&1
config=/etc/larder/larder.toml
is() { # NAME COMMAND...: retries for 45 s
    local name=$1 end=$((SECONDS + 45))
    shift
    until "$@"; do
        ((SECONDS < end)) || { echo "FAIL $name"; return; }
        sleep 0.2
    done
    echo "ok   $name"
}
property() { systemctl show larder -p "$1" --value; }
has() { [[ $(property "$1") == $2 ]]; }
logged() { journalctl -u larder --no-pager | grep -qF -- "$1"; }
ready() { [[ $(curl -s http://127.0.0.1:5001/readyz) == ok ]]; }
status() { grep -qE "^$1:.*$2" "/proc/$(property MainPID)/status"; }

systemctl enable --now larder
is "it starts and says so" has StatusText "serving on 127.0.0.1:5000"
is "it answers" ready
is "it has no capability" status CapBnd 0000000000000000
is "its system calls are filtered" status Seccomp 2
is "its folder is its own" [ "$(stat -c %a /var/lib/private/larder)" = 700 ]
printf '[cache]\ntag_ttl = "7m"\n' >>$config
systemctl reload larder
is "a reload is followed" logged 'changed="cache.tag_ttl'
echo 'nonsense = [' >>$config
systemctl reload larder
is "a broken file changes nothing" logged "configuration not reloaded; the previous one stays in effect"
sed -i '$d' $config
is "root's larder finds it" larder status --config $config
kill -STOP "$(property MainPID)"
is "the watchdog starts it anew" has NRestarts 1
is "it answers again" ready
kill -KILL "$(property MainPID)"
is "a kill is no end" has NRestarts 2
is "it answers after that" ready
systemctl stop larder
is "it stops cleanly" has Result success
printf '[Socket]\nListenStream=127.0.0.1:80\n' >/etc/systemd/system/larder.socket
printf '[server]\nlisten = "systemd:larder.socket"\n' >>$config
systemctl daemon-reload
systemctl start larder.socket
is "a connection starts it at port 80" curl -sf -o /dev/null http://127.0.0.1/v2/
is "it says where it serves" has StatusText "serving on 127.0.0.1:80"
echo done
poweroff
CHECKS

timeout 300 systemd-nspawn --quiet -D "$machine" --boot --register=no --keep-unit >"$machine/root/console" 2>&1 || true
grep -E '^(ok|FAIL) ' "$machine/root/report" || { tail -5 "$machine/root/console"; exit 2; }
grep -qx 'done' "$machine/root/report" && ! grep -q '^FAIL' "$machine/root/report"
