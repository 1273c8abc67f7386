"""What `--tasks` asks for: sets, benchmarks by any name, own tasks, graders and prompts."""

import re
from types import SimpleNamespace

import pytest
from repository import ROOT

from llava import catalog
from llava.errors import UsageError
from llava.eval.evaluate import parser
from llava.eval.evaluation.jobs import Job, Wanted, grouped, jobs_of, own_numbers

KEY = {"OPENAI_API_KEY": "k"}
OTHERS = {
    "--eval",
    "--kind",
    "--log_samples",
    "--name",
    "--num_processes",
    "--output_path",
    "--post_prompt",
    "--protocol",
    "--records",
}
"""Flags of other commands in docs/evaluation.md."""


INDEX = SimpleNamespace(
    task_index={name: {"type": "task"} for name in ("mme", "mmbench_en_dev", "textvqa_val")}
    | {"mmbench_en_dev_static": {"type": "task"}}
    | {
        "both": {"type": "tag", "task": ["mmbench_en_dev", "textvqa_val"]},
        "scienceqa_full": {"type": "tag", "task": ["mme", "textvqa_val"]},
    }
)
"""In place of lmms-eval's index of tasks."""


def tasks(*names, ocr=False, environment=None):
    """The tasks behind `names`."""
    return [job.task for job in jobs_of(names, ocr, environment or {})]


def test_what_only_law_pairs_measures_is_no_task():
    assert catalog.benchmark_id("MMVP (pairs)") == "mmvp_pair"
    with pytest.raises(UsageError, match="law pairs run --scorer vqa --model-path RUN"):
        jobs_of(["MMVP (pairs)"], False, {})


def test_the_papers_set():
    """Its eight benchmarks in its order, under the tasks that measure them; the id is the law's."""
    jobs = jobs_of(["paper8"], False, {})
    ids = [job.wanted[0].benchmark for job in jobs]
    assert ids == [entry.id for entry in catalog.benchmarks().values() if entry.in_law]
    assert len(ids) == 8
    assert tasks("paper8")[:4] == [
        "mmbench_en_dev_static",
        "mme",
        "ok_vqa_val2014",
        "seedbench_img",
    ]


@pytest.mark.parametrize("name", ["seedbench", "SEED-Bench (Img)", "seed", "seedbench:seed_image"])
def test_any_name_of_a_benchmark(name):
    """Leads to its task, and its number keeps the benchmark's id."""
    (job,) = jobs_of([name], False, {})
    assert job.task == "seedbench_img"
    assert job.wanted == (Wanted("seed_image", "seedbench", "fraction"),)


SPELLINGS = {
    "seedbench_img": "seedbench",
    "seedbench_img:seed_image": "seedbench",
    "seedbench:seed_image:fraction": "seedbench",
    "mmmu_val:mmmu_acc": "mmmu_val",
    "MMMU:mmmu_acc": "mmmu_val",
    "mme:mme_perception_score": "mme",
    "mme:mme_perception_score:points": "mme",
    "textvqa_val:exact_match": "textvqa_val",
    "mmbench_en_dev:gpt_eval_score": "mmbench_en_dev",
    "MMBench:gpt_eval_score:percent": "mmbench_en_dev",
    "mmbench_en_dev_static:gpt_eval_score": "mmbench_en_dev",
    "seed_all:seed_video": "seedbench:seed_video",
    "seedbench:seed_all:fraction": "seedbench:seed_all",
}
"""A benchmark by its task, and its number by name -> its id."""


@pytest.mark.parametrize(("name", "usual"), SPELLINGS.items())
def test_however_a_benchmark_is_spelled(name, usual):
    """It is the catalog's: its name in the table, unit, prompt and way to grade."""
    assert jobs_of([name], False, {}) == jobs_of([usual], False, {})
    assert jobs_of([name, usual], False, {}) == jobs_of([usual], False, {})


@pytest.mark.parametrize("environment", [{}, KEY])
def test_the_shipped_mmbench_is_never_run(environment):
    """It draws options at random where the service is silent; another number of it changes that
    not."""
    for name in ("mmbench_en_dev", "MMBench_EN_Dev", "mmbench_en_dev:submission", "mmb:x:points"):
        (job,) = jobs_of([name], False, environment)
        assert job.task == f"mmbench_en_dev_{'graded' if environment else 'static'}"
        assert bool(job.judge) == bool(environment)


def test_another_number_of_a_benchmark():
    """Has a name of its own beside the benchmark's, and the benchmark's prompt."""
    more = Wanted("mme_cognition_score", "mme:mme_cognition_score", "points")
    (job,) = jobs_of(["mme:mme_cognition_score"], False, {})
    assert job.wanted == (more,)
    for names in (["paper8", "mme:mme_cognition_score"], ["mme:mme_cognition_score", "paper8"]):
        (job,) = [one for one in jobs_of(names, False, {}) if one.task == "mme"]
        assert set(job.wanted) == {Wanted("mme_perception_score", "mme", "points"), more}
    (job,) = jobs_of(["textvqa_val:submission"], True, {})
    assert (job.prompt, job.wanted[0].benchmark) == ("ocr", "textvqa_val:submission")


@pytest.mark.parametrize(
    "names",
    [["mmmu_val:mmmu_acc:percent"], ["SEED:seed_image:points"], ["mine:acc", "mine:acc:percent"]],
)
def test_a_unit_that_contradicts(names):
    """The catalog, or another name of the same call."""
    with pytest.raises(UsageError, match=r"is in fraction; leave out|in two units"):
        jobs_of(names, False, {})


def test_nothing_named():
    """Commas alone name no task, which is no success."""
    with pytest.raises(UsageError, match="names no task"):
        jobs_of([], False, {})


def test_a_name_twice_is_one_job():
    """Whatever it is called."""
    assert tasks("paper8", "MME", "mme") == tasks("paper8")


def test_two_numbers_of_one_task():
    """Are one job; each keeps the name that the catalog gives it."""
    (job,) = jobs_of(["seedbench:seed_all", "seedbench:seed_video"], False, {})
    assert job.task == "seedbench"
    assert [w.benchmark for w in job.wanted] == ["seedbench:seed_all", "seedbench:seed_video"]


def test_without_a_key_nothing_is_graded(law_log):
    """Option letters are compared, aloud; the shipped task is never run."""
    assert tasks("mmbench") == ["mmbench_en_dev_static"]
    assert any("OPENAI_API_KEY is not set" in line for line in law_log)
    assert all(job.judge == "" for job in jobs_of(["mmb"], False, {}))


def test_with_a_key_the_service_grades(law_log):
    """Aloud, since it costs; who judges is known, so that the protocol can say it."""
    (job,) = jobs_of(["mmbench"], False, KEY)
    assert (job.task, job.judge) == ("mmbench_en_dev_graded", "gpt-4o-2024-11-20")
    assert any("grades the answers" in line for line in law_log)
    (job,) = jobs_of(["mmbench"], False, KEY | {"MODEL_VERSION": "another"})
    assert job.judge == "another"


def test_the_key_of_another_service():
    """API_TYPE says which variable counts, as in lmms-eval."""
    assert tasks("mmbench", environment=KEY | {"API_TYPE": "azure"}) == ["mmbench_en_dev_static"]
    azure = {"API_TYPE": "azure", "AZURE_API_KEY": "k"}
    assert tasks("mmbench", environment=azure) == ["mmbench_en_dev_graded"]


def test_either_form_by_its_own_name():
    """The free one also with a key; the graded one not without."""
    (job,) = jobs_of(["mmbench_en_dev_static"], False, KEY)
    assert (job.task, job.wanted[0].benchmark) == ("mmbench_en_dev_static", "mmbench_en_dev")
    with pytest.raises(UsageError, match="OPENAI_API_KEY"):
        jobs_of(["mmbench_en_dev_graded"], False, {})


def test_ocr_tokens():
    """A prompt of TextVQA, without unless asked for; files of the two stand beside each other."""
    (without,) = jobs_of(["textvqa"], False, {})
    (having,) = jobs_of(["textvqa"], True, {})
    assert (without.prompt, without.prompt_kwargs) == ("no-ocr", {"ocr": False})
    assert (having.prompt, having.prompt_kwargs) == ("ocr", {"ocr": True})
    assert (without.stem(None), having.stem(None)) == ("textvqa_val", "textvqa_val-ocr")
    assert having.stem(8) == "textvqa_val-ocr-limit8"
    assert len(tasks("paper8", ocr=True)) == 8
    with pytest.raises(UsageError, match="textvqa_val has"):
        grouped(jobs_of(["mme"], True, {}), INDEX, True, {})


def test_groups():
    """Are their tasks, as the catalog knows these; OCR tokens are asked for inside, too."""
    (static, text) = grouped(jobs_of(["both"], True, {}), INDEX, True, {})
    assert (static.task, text.task, text.prompt) == (
        "mmbench_en_dev_static",
        "textvqa_val",
        "ocr",
    )
    (job,) = grouped(jobs_of(["both", "mmbench", "textvqa"], False, {}), INDEX, False, {})[1:]
    assert (job.prompt, job.wanted) == (
        "no-ocr",
        (Wanted("exact_match", "textvqa_val", "fraction"),),
    )


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("both:acc", "ask for mmbench_en_dev:acc textvqa_val:acc"),
        ("ScienceQA (Full)", "scienceqa_full: a group.*ask for mme textvqa_val"),
    ],
)
def test_one_number_of_a_group(name, told):
    """Is refused with the words that ask for those of its tasks."""
    with pytest.raises(UsageError, match=told):
        grouped(jobs_of([name], False, {}), INDEX, False, {})


def test_own_tasks():
    """Any name; a metric, and a unit where it is no fraction."""
    assert jobs_of(["mine"], False, {}) == [Job("mine")]
    (job,) = jobs_of(["mine:acc"], False, {})
    assert job.wanted == (Wanted("acc", "mine", "fraction"),)
    (job,) = jobs_of(["mine:score"], False, {})
    assert job.wanted[0].unit == "points"
    (job,) = jobs_of(["mine:score:percent"], False, {})
    assert job.wanted[0].unit == "percent"
    (job,) = jobs_of(["mine:acc", "mine:score"], False, {})
    assert [w.benchmark for w in job.wanted] == ["mine:acc", "mine:score"]
    (job,) = jobs_of(["mine:acc", "mine"], False, {})
    assert job.wanted == ()


@pytest.mark.parametrize("name", ["mine:", ":acc", "mine:acc:", "mine:acc:percent:more", "a::b"])
def test_no_form_of_a_name(name):
    """Says which forms there are."""
    with pytest.raises(UsageError, match="task:metric"):
        jobs_of([name], False, {})


def test_an_unknown_unit():
    """Is refused with the nearest one."""
    with pytest.raises(UsageError, match="did you mean 'percent'"):
        jobs_of(["mine:score:percents"], False, {})


def test_numbers_of_own_tasks():
    """A single one is called as the task; of several each by its metric; one that is not there is
    refused."""
    assert own_numbers(Job("mine"), ["acc"]) == (Wanted("acc", "mine", "fraction"),)
    both = own_numbers(Job("mine"), ["acc", "score"])
    assert [w.benchmark for w in both] == ["mine:acc", "mine:score"]
    asked = Job("mine", (Wanted("ac", "mine", "fraction"),))
    with pytest.raises(UsageError, match="did you mean 'acc'"):
        own_numbers(asked, ["acc", "score"])
    with pytest.raises(UsageError, match="no number"):
        own_numbers(Job("mine"), [])


def test_the_documented_table():
    """docs/evaluation.md lists the paper's eight as they are run."""
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    said = {row[0].strip(): [cell.strip() for cell in row[1:4]] for row in rows if len(row) == 5}
    for entry in (one for one in catalog.benchmarks().values() if one.in_law):
        tasks = " or ".join(f"`{task}`" for task in reversed(entry.tasks))
        assert said[entry.display] == [tasks, f"`{entry.metric}`", entry.unit]
    flags = {
        flag
        for line in text.splitlines()
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z_-]*", line)
    }
    known = {option for action in parser()._actions for option in action.option_strings}
    assert flags - known == OTHERS
