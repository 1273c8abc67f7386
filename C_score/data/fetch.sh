# shellcheck shell=bash
# Shared by prepare_*.sh: fetch, check and unpack archives so that a folder is there whole or not at
# all. Sourced, not called. `name` is the set's folder, `dir` where it goes, `from` a folder or a URL.
# shellcheck disable=SC2154  # `name` and `here` are set by the script that sources this

say() { echo "${0##*/}: $*" >&2; }

fail() { say "$@"; exit 1; }

usage() { sed -n '2,/^set -/s/^# \{0,1\}//p' "$0"; }

misuse() { say "$@"; usage >&2; exit 2; }

parse() { # parse ARGUMENTS: sets dir and from, and extra to the flags of one script, which handles them
  dir="" from="" extra=()
  while [ $# -gt 0 ]; do
    case "$1" in
      -h | --help) usage; exit 0 ;;
      --allow-other-counts) extra+=("$1") ;;
      --from | --crowd)
        [ $# -ge 2 ] || misuse "$1 needs a value"
        if [ "$1" = --from ]; then from="$2"; else extra+=("$1" "$2"); fi
        shift ;;
      -*) misuse "unknown option $1" ;;
      *) [ -z "$dir" ] || misuse "one folder, not $dir and $1"; dir="$1" ;;
    esac
    shift
  done
  dir="${dir:-$here}"
  mkdir -p "$dir" || fail "$dir: cannot be made"
  dir="$(cd "$dir" && pwd)"
  partial="$dir/.$name.partial"
  trap 'rm -rf "$partial"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
}

intact() { # intact FILE: whether an archive, or one with .part behind its name, can be read to its end
  case "$1" in
    *.zip*) command -v unzip >/dev/null || fail "unzip is not there; install it"; unzip -tqq "$1" ;;
    *.tar.gz*) tar -tzf "$1" ;;
    *) false ;;
  esac >/dev/null 2>&1
}

download() { # download URL FILE: resumes FILE.part
  say "fetching $1"
  if intact "$2.part"; then
    say "all of it is there already"
  elif command -v curl >/dev/null; then
    curl --fail --location --retry 3 --continue-at - --output "$2.part" "$1"
  elif command -v wget >/dev/null; then
    wget --continue --tries 3 --output-document "$2.part" "$1"
  else
    fail "neither curl nor wget is there; install one, or fetch $1 yourself and put it at $2"
  fi || fail "$1: not fetched. The same command goes on with what has come ($2.part; remove it to" \
    "begin anew); or fetch the file by other means and put it at $2"
  mv "$2.part" "$2"
}

# obtain FILE [URL]: sets `obtained` to where FILE is: in the folder of --from, in DIR, or downloaded
# to DIR. False where it is nowhere and has no URL.
obtain() {
  obtained="$dir/$1"
  case "$from" in
    *://*) [ -f "$obtained" ] || download "${from%/}/$1" "$obtained" ;;
    ?*) obtained="$from/$1"; [ -f "$obtained" ] ;;
    *) [ -f "$obtained" ] || { [ $# -ge 2 ] && download "$2" "$obtained"; } ;;
  esac
}

unpack() { # unpack ARCHIVE: into an empty $partial; a damaged archive of ours is put out of the way
  say "checking $1"
  if ! intact "$1"; then
    [ "${1%/*}" != "$dir" ] || mv "$1" "$1.damaged"
    fail "$1: the archive is cut off or damaged; expected a whole ${1##*/}. Fetch it again" \
      "(the same command does so where it has a link; a damaged download is renamed .damaged)"
  fi
  rm -rf "$partial"
  mkdir "$partial"
  say "unpacking $1"
  case "$1" in
    *.zip) unzip -qq "$1" -d "$partial" ;;
    *) tar -xzf "$1" -C "$partial" ;;
  esac || fail "$1: not unpacked (is the disk full?); nothing is left behind"
  [ -d "$partial/$name" ] || fail "$1: holds no folder $name; expected the set's own archive"
  rm -rf "$partial/__MACOSX"
  find "$partial" -name .DS_Store -delete
}

finish() { # moves the checked folder into place
  mv "$partial/$name" "$dir/$name"
  say "$dir/$name is ready"
}

count() { find "$1" -type f -name "$2" ! -name '.*' | wc -l | tr -d ' '; }

next() { # next FOLDER DATASET
  local script folder
  script="$(printf %q "$(cd "$here/.." && pwd)/extract_feature.py")" folder="$(printf %q "$1")"
  echo "Next, with any feature that extract_feature.py knows:"
  echo "  python $script --input_path $folder/JPEGImages --output_path $folder/features --feature DINOv2"
  echo "  law c-score --dataset $2 --data $folder --model dino"
}
