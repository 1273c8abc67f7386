"""`law warps --out DIR`: builds warps-mini, pairs of real photographs with exact keypoints.

The photographs are those inside scikit-image's package, so nothing is downloaded. The two of its
stereo pair are linked by their measured disparity; all others, and further views of these two, are
homographies of a photograph (zoomed, tilted, turned), so every keypoint is known to a fraction of
a pixel. The folder has the layout of SPair-71k and is read as that set is.

It tests geometric, not semantic, correspondence: a PCK measured on it says that features find the
same spot of the same scene again, and nothing about matching a paw with another animal's paw.
"""

import argparse
import os
import secrets
import shutil
import socket
from pathlib import Path

import PIL

from C_score.warps_layout import NAME, WHAT, digest, write_lists, write_scene
from C_score.warps_scenes import installed_version, read_scenes
from C_score.warps_views import views
from llava.errors import LawError, UsageError
from llava.files import read_json
from llava.log import get_logger, progress

logger = get_logger("warps")

VERSION = 1
"""Raised with every change that alters the files."""


def main(argv: list[str]) -> None:
    """Builds the set, or says that it is there already."""
    parser = argparse.ArgumentParser(
        prog="law warps", description=f"Build {NAME} from scikit-image's photographs. {WHAT}"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--seed", type=int, default=0, help="of the warps (default 0)")
    arguments = parser.parse_args(argv)
    about = build(arguments.out, arguments.seed)
    print(
        f"{arguments.out}: {NAME}, {about['images']} images of {about['categories']} photographs, "
        f"{about['pairs']} test pairs, seed {about['seed']}"
    )
    print(WHAT)


def build(out: str | os.PathLike, seed: int = 0) -> dict:
    """Makes the set in the folder `out`, whole or not at all; returns what its warps.json says.

    A folder that holds the same set already is left as it is. The same seed gives the same bytes
    with the same versions of scikit-image, Pillow and numpy.

    Raises UsageError where `out` holds something else, MissingPackageError without scikit-image.
    """
    out = Path(out)
    if seed < 0:
        raise UsageError(f"--seed is {seed}; expected 0 or more")
    if found := _existing(out, seed):
        return found
    version = installed_version()
    temporary = out.with_name(f".{out.name}.{socket.gethostname()}.{secrets.token_hex(4)}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        pairs, images, categories = [], 0, 0
        for scene in progress(read_scenes(), f"{NAME}: photographs"):
            found_views = views(scene, seed)
            pairs += write_scene(temporary, scene.name, found_views, len(pairs))
            images, categories = images + len(found_views), categories + 1
        about = {
            "name": NAME,
            "note": WHAT,
            "version": VERSION,
            "seed": seed,
            "images": images,
            "categories": categories,
            "scikit-image": version,
            "pillow": PIL.__version__,
        }
        write_lists(temporary, pairs, about)
        temporary.rename(out)
    except OSError as error:
        raise LawError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return _read_about(out)


def _existing(out: Path, seed: int) -> dict | None:
    """What is said of the set that `out` holds whole already; None where there is nothing yet."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    elsewhere = "take another --out, or remove it first"
    if not (out / "warps.json").is_file():
        raise UsageError(f"{out}: exists and is no {NAME}; {elsewhere}")
    about = _read_about(out)
    if (about.get("version"), about.get("seed")) != (VERSION, seed):
        raise UsageError(
            f"{out}: holds {NAME} version {about.get('version')} with seed {about.get('seed')}, "
            f"wanted version {VERSION} with seed {seed}; {elsewhere}"
        )
    if about.get("digest") != digest(out):
        raise LawError(
            f"{out}: files of {NAME} were changed since they were written; remove the folder and "
            f"type `law warps --out {out} --seed {seed}` again"
        )
    logger.info("%s: is there already, nothing written", out)
    return about


def _read_about(out: Path) -> dict:
    return read_json(out / "warps.json", f"remove {out} and build again")
