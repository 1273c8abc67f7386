"""configs/miniature.yaml and its cut: what they name is there and goes together."""

import shlex

import pytest
import yaml
from make_miniature import RANDOM, TASK, parser
from repository import ROOT

from llava.eval.evaluate import parser as evaluate_parser
from llava.model.multimodal_encoder.known import towers
from llava.sweep.plan import load_run
from llava.train.args import parse

CONFIGS = ("miniature", "miniature_cut")


@pytest.fixture(scope="module", params=CONFIGS)
def config(request):
    """A sweep."""
    return load_run(ROOT / "configs" / f"{request.param}.yaml")


def test_steps_of_preparation(config):
    """The script knows their flags; each writes to a folder of its own."""
    folders = []
    for step in config.prepare:
        script, *words = shlex.split(step.script)
        assert (ROOT / script).is_file()
        arguments = parser().parse_args(words)
        assert arguments.out == config.run_dir / step.folder
        folders.append(step.folder)
        assert all(output.startswith(f"{step.folder}/") for output in step.outputs)
    assert len(set(folders)) == len(folders)


def test_what_is_trained_on_is_made(config):
    """Every path below the run folder begins in a folder that a step writes."""
    made = {step.folder for step in config.prepare}

    def paths(value):
        if isinstance(value, dict):
            return [path for one in value.values() for path in paths(one)]
        if isinstance(value, list):
            return [path for one in value for path in paths(one)]
        return [value] if str(value).startswith(f"{config.run_dir}/") else []

    text = (ROOT / "configs" / f"{config.name.replace('-', '_')}.yaml").read_text()
    asked = yaml.safe_load(text.replace("{run_dir}", str(config.run_dir)))
    asked = {key: asked[key] for key in asked if key not in ("prepare", "finish")}
    found = paths(asked)
    assert len(found) > 8
    for path in found:
        assert path.removeprefix(f"{config.run_dir}/").split("/")[0] in made, path


def test_training_flags(config):
    """Both stages' are known to `law train`; and the law's benchmark is the one that is dumped."""
    for flags in (config.stage1, config.stage2, config.stage1 | config.alignment.nll.flags):
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        parse(["--model_name_or_path", "x", "--output_dir", "y", *words])
    assert config.evaluation.tasks == config.alignment.cosine.benchmarks == [TASK]
    words = [
        w for name, value in config.evaluation.flags.items() for w in (f"--{name}", str(value))
    ]
    evaluate_parser().parse_args(["--run", "x", "--tasks", TASK, *words])


def test_names(config):
    """Towers of the plugin, whether it is installed or not, or folders that the script makes."""
    plugin = (ROOT / "examples/tower_plugin/src/law_example_towers/families.py").read_text()
    made = {f"tiny/{name}" for name in ("clip", *RANDOM)}
    assert set(config.towers) <= made
    for name in config.representations:
        for part in name.split("+"):
            known = part.split("@")[0]
            family = known.split("/")[0].split("-untrained")[0]
            assert known in config.towers or known in towers() or family in plugin
    assert set(config.alignment.cosine.references) <= set(config.representations)


def test_how_many():
    """The miniature has more than the law has coefficients; the cut has three, all tiny."""
    assert len(load_run(ROOT / "configs" / "miniature.yaml").representations) >= 8
    cut = load_run(ROOT / "configs" / "miniature_cut.yaml")
    assert len(cut.representations) == 3
    assert all(part in cut.towers for name in cut.representations for part in name.split("+"))
