#!/usr/bin/env bash
# bash C_score/data/prepare_ap10k.sh [DIR] [--from FOLDER|URL] [--crowd FILE]
#
# Unpacks AP-10K into DIR/ap-10k and makes its pairs (C_score/datasets/prepare_ap10k.py says by what
# rules); DIR is this folder where not given. A call where all is there does nothing. ap-10k.zip is on
# Google Drive only: put it into DIR, or let --from name its folder. --crowd FILE lists further images
# to leave out. PYTHON=/path/to/python chooses the interpreter.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
name=ap-10k
drive=1-FNNGcdtAQRehYYkGY1y4wzFNg4iWNad
# shellcheck source=C_score/data/fetch.sh
. "$here/fetch.sh"

make_pairs() { # make_pairs FOLDER
  local python="${PYTHON:-}"
  if [ -z "$python" ]; then
    python=python
    command -v python >/dev/null || python=python3
  fi
  PYTHONPATH="$here/../..${PYTHONPATH:+:$PYTHONPATH}" \
    "$python" -m C_score.datasets.prepare_ap10k "$1" "${extra[@]+"${extra[@]}"}" || exit 1
}

parse "$@"
case " ${extra[*]-} " in *" --allow-other-counts "*) misuse "--allow-other-counts is for SPair-71k" ;; esac
if [ -f "$dir/$name/ap10k_prepared.json" ]; then
  say "$dir/$name is there already and prepared; nothing to do"
elif [ -e "$dir/$name" ]; then
  make_pairs "$dir/$name"
else
  obtain "$name.zip" || fail "$name.zip is not in ${from:-$dir}, and curl cannot fetch it:" \
    "\`gdown $drive\` or a browser at https://drive.google.com/uc?id=$drive; save it as" \
    "$dir/$name.zip, then call again"
  unpack "$obtained"
  make_pairs "$partial/$name"
  finish
fi
next "$dir/$name" ap10k
