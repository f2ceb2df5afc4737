#!/usr/bin/env bash
# Runs a command with SOAK_FOLDER on a file system of 768 MiB. Needs a mount namespace.
set -euo pipefail
folder=$(mktemp -d)
mount -t tmpfs -o size=768m tmpfs "$folder"
SOAK_FOLDER=$folder "$@"
