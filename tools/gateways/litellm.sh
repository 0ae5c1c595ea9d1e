#!/usr/bin/env bash
# LiteLLM's proxy (pinned to before 1.107.0, a release that was compromised and withdrawn):
#   tools/gateways/litellm.sh VENV_DIR
set -euo pipefail
venv=${1:?usage: litellm.sh VENV_DIR}
[ -x "$venv/bin/pip" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install -q --disable-pip-version-check --only-binary :all: 'litellm[proxy]==1.105.7'
