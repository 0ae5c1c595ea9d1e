#!/usr/bin/env bash
# Builds other gateways and load tools from PyPI, each in a virtual environment of its own, for benchmarks and tests:
#   tools/gateways/build.sh [FOLDER] [NAME...]      (default: .cache/gateways, all of them; wheels only)
# What cannot be installed leaves the reason in FOLDER/NAME.failed; the rest goes on.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$here/../../.cache/gateways}
[ $# -eq 0 ] || shift
names=("$@")
[ ${#names[@]} -gt 0 ] || names=(litellm sglang-router vllm-router guidellm)
mkdir -p "$folder"
for name in "${names[@]}"; do
  if "$here/$name.sh" "$folder/$name" > "$folder/$name.log" 2>&1; then
    rm -f "$folder/$name.failed"
  else
    grep -v '^WARNING' "$folder/$name.log" | tail -1 > "$folder/$name.failed"
    echo "$name: not built: $(cat "$folder/$name.failed")"
  fi
done
