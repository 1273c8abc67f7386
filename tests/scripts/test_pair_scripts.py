"""The bash scripts of pair benchmarks: what they ask `law` for; `law` is a recorder."""

import os
import subprocess

import pytest
from repository import ROOT

FOLDER = ROOT / "scripts" / "pairs"
CONFIGS = ROOT / "configs" / "pairs"


@pytest.fixture
def call(tmp_path):
    """Runs a script with a recorder on the PATH; the calls of `law`, each a list of words."""
    tools = tmp_path / "bin"
    tools.mkdir()
    log = tmp_path / "calls"
    (tools / "law").write_text(
        f'#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done >> {log}\necho >> {log}\n'
    )
    (tools / "law").chmod(0o755)

    def run(script: str, *flags: str, **given: str) -> list[list[str]]:
        done = subprocess.run(
            ["bash", str(FOLDER / f"{script}.sh"), *flags],
            env={"PATH": f"{tools}:{os.environ['PATH']}", **given},
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, script, stderr=done.stderr)
        return [block.split("\n") for block in log.read_text().strip().split("\n\n")]

    return run


def asked(config: str, scorer: str, out: str, *which: str) -> list[str]:
    return [
        *("pairs", "run", "--config", str(CONFIGS / f"{config}.yaml"), "--scorer", scorer),
        *(*which, "--out", f"results/pairs/{config}/{out}-{scorer}.json"),
    ]


@pytest.mark.parametrize(
    ("variable", "scorer", "flag"),
    [
        ("RUN", "vqa", "--model-path"),
        ("MODEL", "clip", "--model"),
        ("HEAD", "head", "--head"),
        ("EMBEDDER", "embed", "--model-path"),
    ],
)
def test_whatsup(call, variable, scorer, flag):
    assert call("whatsup", **{variable: "/a/b"}) == [asked("whatsup", scorer, "a-b", flag, "/a/b")]


def test_inputs_and_flags_reach_the_command(call):
    (words,) = call(
        "whatsup", "--batch-size", "4", RUN="r", RESULTS="t.csv", LIMIT="3", OUT="o", CONFIGS="c"
    )
    assert words[words.index("--config") + 1] == "c/whatsup.yaml"
    assert words[words.index("--out") :] == [
        *("--out", "o/whatsup/r-vqa.json", "--results", "t.csv", "--limit", "3"),
        *("--batch-size", "4"),
    ]


def test_mmvp_takes_questions_or_statements(call):
    assert call("mmvp", RUN="r") == [
        asked("mmvp", "vqa", "r", "--model-path", "r"),
        asked("mmvp_vlm", "vqa", "r", "--model-path", "r"),
    ]


def test_mmvp_of_a_clip(call):
    assert call("mmvp", MODEL="m") == [
        asked("mmvp_statements", "clip", "m", "--model", "m"),
        asked("mmvp_vlm", "clip", "m", "--model", "m"),
    ]


def test_towers_end_in_a_table(call):
    assert call("towers", MODELS="./a/b c") == [
        asked("whatsup", "clip", "a-b", "--model", "./a/b"),
        asked("whatsup", "clip", "c", "--model", "c"),
        [*("pairs", "table"), *(f"results/pairs/whatsup/{x}-clip.json" for x in ("a-b", "c"))],
    ]


def test_agreement(call):
    assert call("agreement", "--pool", "cls", MODELS="a b.c", CONFIG="mmvp") == [
        [
            *("pairs", "agree", "--config", str(CONFIGS / "mmvp.yaml"), "--model", "a", "b.c"),
            *("--out", "results/pairs/mmvp/agreement.json", "--pool", "cls"),
        ]
    ]


@pytest.mark.parametrize(
    ("script", "given"),
    [("whatsup", {}), ("whatsup", {"RUN": "a", "MODEL": "b"}), ("towers", {}), ("agreement", {})],
)
def test_inputs_that_are_missing_or_too_many(call, script, given):
    with pytest.raises(subprocess.CalledProcessError) as failed:
        call(script, **given)
    assert failed.value.returncode == 2
    assert f"bash scripts/pairs/{script}.sh" in failed.value.stderr
