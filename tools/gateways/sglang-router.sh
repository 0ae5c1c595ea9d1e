#!/usr/bin/env bash
# SGLang's router:
#   tools/gateways/sglang-router.sh VENV_DIR
set -euo pipefail
venv=${1:?usage: sglang-router.sh VENV_DIR}
[ -x "$venv/bin/pip" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install -q --disable-pip-version-check --only-binary :all: sglang-router==0.3.2
