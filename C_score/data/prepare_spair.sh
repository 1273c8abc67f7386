#!/usr/bin/env bash
# bash C_score/data/prepare_spair.sh [DIR] [--from FOLDER|URL] [--allow-other-counts]
#
# Fetches SPair-71k (0.2 GB) into DIR/SPair-71k, checks and unpacks it; DIR is this folder where not
# given. A call where it is there already only checks it. --from takes SPair-71k.tar.gz from a folder
# or from below another URL. --allow-other-counts accepts a set of another size than the published.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
name=SPair-71k
link="http://cvlab.postech.ac.kr/research/SPair-71k/data/SPair-71k.tar.gz"
# shellcheck source=C_score/data/fetch.sh
. "$here/fetch.sh"

published() { # images, and pairs per split, of the SPair-71k paper (Min et al., 2019)
  case "$1" in images) echo 1800 ;; trn) echo 53340 ;; val) echo 5384 ;; test) echo 12234 ;; esac
}

check_total() { # check_total images|trn|val|test FOUND
  [ "$2" != "$(published "$1")" ] || return 0
  case " ${extra[*]-} " in
    *" --allow-other-counts "*)
      say "WARNING: $2 $1, but SPair-71k has $(published "$1"): scores are not comparable with published ones" ;;
    *)
      say "$2 $1; expected $(published "$1"), as published (--allow-other-counts accepts another set)"
      return 1 ;;
  esac
}

check() { # check FOLDER: whether everything that Layout lists is there, in the published numbers
  local folder="$1" split list there pairs images annotations missing
  for split in trn val test; do
    list="$folder/Layout/large/$split.txt" there="$folder/PairAnnotation/$split"
    [ -f "$list" ] || { say "$list is missing"; return 1; }
    missing="$(LC_ALL=C comm -23 \
      <(tr -d '\r' < "$list" | sed '/^$/d' | LC_ALL=C sort -u) \
      <(find "$there" -name '*.json' | sed 's/.*\///; s/\.json$//' | LC_ALL=C sort) | sed -n 1p)"
    [ -z "$missing" ] || { say "$there/$missing.json is missing; Layout lists it"; return 1; }
    pairs="$(count "$there" '*.json')"
    check_total "$split" "$pairs" || return 1
  done
  images="$(count "$folder/JPEGImages" '*.jpg')"
  annotations="$(count "$folder/ImageAnnotation" '*.json')"
  [ "$images" = "$annotations" ] || {
    say "$images images, but $annotations image annotations in $folder"
    return 1
  }
  check_total images "$images"
}

parse "$@"
case " ${extra[*]-} " in *" --crowd "*) misuse "--crowd is for AP-10K" ;; esac
if [ -e "$dir/$name" ]; then
  check "$dir/$name" || fail "$dir/$name is there but not complete; move it away and call again"
  say "$dir/$name is there already and complete; nothing to do"
else
  obtain "$name.tar.gz" "$link" || fail "$from: has no $name.tar.gz"
  unpack "$obtained"
  check "$partial/$name" || fail "$obtained: not the set it should be; nothing is left behind"
  finish
fi
next "$dir/$name" spair
