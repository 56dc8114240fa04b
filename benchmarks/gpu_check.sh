#!/usr/bin/env bash
# Tests and measures what only a GPU can show, on one GPU, without network, in at most 8 minutes:
#
#   benchmarks/gpu_check.sh [FOLDER] [--device cuda|cpu] [--parts tests|steps|metric|study ...]
#
# It runs the tests of tests/device on the GPU (kernels, capture, training, resuming, latents,
# metrics, likelihood, cuda:N), then benchmarks/gpu_train_step.py for the shapes of Pythia-70m, 1b
# and 6.9b, with sparsify as shipped for comparison, then the next-token AUROC of 32,768 latents
# (benchmarks/next_token.py), then a small study end to end with `device: cuda`. FOLDER (by default
# build/gpu_check) gets gpu_check.json, gpu_check.md and a log of each part. If a part fails or
# cannot run, it is named, the others still run, and the exit status is 1. With `--device cpu`
# everything runs with tiny shapes, which shows that the script works. `--parts` reruns single parts.
#
# The machine needs this repository, bash, and one Python 3.11 or newer that can import
#
#   torch built for CUDA, with triton (for --device cpu: any torch)
#   everything else in requirements.lock, and pytest
#   sparsify (eai-sparsify in requirements-peers.txt), or the comparison is left out
#
# and, for triton on a GPU, gcc or clang and that Python's headers (Python.h).
#
# Nothing is installed or downloaded. The Python is $PYTHON, else .venv/bin/python, else python3. If
# .venv-peers has sparsify, the steps run with its Python. Packages copied to a folder (pip install
# --no-index --target FOLDER *.whl) are found by PYTHONPATH. nullsae itself need not be installed.
set -uo pipefail
cd "$(dirname "$0")/.."

runs() { command -v "$1" > /dev/null && "$1" -c "import sys; $2; sys.exit(sys.version_info < (3, 11))" 2> /dev/null; }

for python in "${PYTHON:-.venv/bin/python}" python3; do
  runs "$python" "import torch" && break
  python=
done
if [ -z "$python" ]; then
  echo "gpu_check: neither ${PYTHON:-.venv/bin/python} nor python3 is Python 3.11 or newer with torch; set PYTHON" >&2
  exit 2
fi
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
peers=${PEERS_PYTHON:-.venv-peers/bin/python}
runs "$peers" "import torch, sparsify" || peers=$python
exec "$python" benchmarks/gpu_check.py --peers-python "$peers" "$@"
