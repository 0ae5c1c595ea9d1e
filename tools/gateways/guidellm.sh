#!/usr/bin/env bash
# guidellm, vLLM's load generator:
#   tools/gateways/guidellm.sh VENV_DIR
set -euo pipefail
venv=${1:?usage: guidellm.sh VENV_DIR}
[ -x "$venv/bin/pip" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install -q --disable-pip-version-check --only-binary :all: guidellm==0.8.1
