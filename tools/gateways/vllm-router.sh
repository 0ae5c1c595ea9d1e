#!/usr/bin/env bash
# vLLM's router:
#   tools/gateways/vllm-router.sh VENV_DIR
set -euo pipefail
venv=${1:?usage: vllm-router.sh VENV_DIR}
[ -x "$venv/bin/pip" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install -q --disable-pip-version-check --only-binary :all: vllm-router==0.1.17
