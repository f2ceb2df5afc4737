#!/bin/sh
# Gives larder its folder on the node, and tells containerd of it, which needs no restart.
set -eu
chown 65532:65532 /node/data
chmod 700 /node/data
target=/node/certs.d/_default/hosts.toml
if [ -e "$target" ] && ! grep -q "^# Written by larder's DaemonSet" "$target"; then
    echo "$target is somebody else's, and stays as it is; add larder to it by hand" >&2
    exit 0
fi
mkdir -p /node/certs.d/_default
# In one step: containerd reads it at every pull.
cp /larder/hosts.toml "$target.new"
chmod 644 "$target.new"
mv "$target.new" "$target"
