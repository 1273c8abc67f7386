#!/usr/bin/env bash
# bash C_score/data/prepare_pfpascal.sh [DIR] [--from FOLDER|URL]
#
# Fetches PF-Pascal and its pair lists into DIR/PF-dataset-PASCAL, checks and unpacks it; DIR is this
# folder where not given. A call where it is there already only checks it. --from takes
# PF-dataset-PASCAL.zip and {test,val,train}_pairs_pf_pascal.csv from a folder or from below another
# URL. The training pairs are on Google Drive only; without them val and test can be scored.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
name=PF-dataset-PASCAL
willow="http://www.di.ens.fr/willow/research"
drive=111tpXshLiJ4qudBHoGK3HbMSNr9vVRq9
# shellcheck source=C_score/data/fetch.sh
. "$here/fetch.sh"

check_list() { # check_list FOLDER SPLIT: every image of the list is there
  local list="$1/${2}_pairs_pf_pascal.csv" pairs=0 first second image
  while IFS=, read -r first second _ || [ -n "$first" ]; do
    pairs=$((pairs + 1))
    for image in "$first" "$second"; do
      [ -f "$1/JPEGImages/${image##*JPEGImages/}" ] || {
        say "$1/JPEGImages/${image##*JPEGImages/} is missing; line $((pairs + 1)) of ${list##*/} names it"
        return 1
      }
    done
  done < <(tr -d '\r' < "$list" | sed -e 1d -e '/^$/d')
  [ "$pairs" -gt 0 ] || { say "$list holds no pairs"; return 1; }
  say "$pairs pairs in ${list##*/}"
}

check() { # check FOLDER
  local split
  for split in test val; do
    [ -f "$1/${split}_pairs_pf_pascal.csv" ] || {
      say "$1/${split}_pairs_pf_pascal.csv is missing"
      return 1
    }
    check_list "$1" "$split" || return 1
  done
  [ ! -f "$1/train_pairs_pf_pascal.csv" ] || check_list "$1" train
}

add_train_list() { # add_train_list FOLDER: where somebody has fetched it
  local list=train_pairs_pf_pascal.csv at
  [ ! -f "$1/$list" ] || return 0
  for at in "$dir" "$from"; do
    if [ -f "$at/$list" ]; then
      cp "$at/$list" "$1/.train.partial" && mv "$1/.train.partial" "$1/$list"
      return
    fi
  done
  say "no training pairs, which curl cannot fetch. For --split trn: \`gdown $drive\` or a browser at" \
    "https://drive.google.com/uc?id=$drive; save it as $dir/$list, then call again"
}

parse "$@"
[ -z "${extra[*]-}" ] || misuse "${extra[0]} is for another set"
if [ -e "$dir/$name" ]; then
  add_train_list "$dir/$name"
  check "$dir/$name" || fail "$dir/$name is there but not complete; move it away and call again"
  say "$dir/$name is there already and complete; nothing to do"
else
  obtain "$name.zip" "$willow/proposalflow/dataset/$name.zip" || fail "$from: has no $name.zip"
  unpack "$obtained"
  for split in test val; do
    file="${split}_pairs_pf_pascal.csv"
    obtain "$file" "$willow/cnngeometric/other_resources/$file" || fail "$from: has no $file"
    cp "$obtained" "$partial/$name/$file"
  done
  add_train_list "$partial/$name"
  check "$partial/$name" || fail "$name.zip and the lists do not fit; nothing is left behind"
  finish
fi
next "$dir/$name" pfpascal
