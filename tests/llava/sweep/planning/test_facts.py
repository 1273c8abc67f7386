"""What plans rest on: shapes of language models, data that are counted, expected runs."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

import AC_policy.paper
from llava import catalog
from llava.errors import LawError, UsageError
from llava.sweep.planning.facts import facts
from llava.sweep.planning.language_model import known_models, language_model
from llava.sweep.planning.records import training_records

PUBLISHED = {
    "lmsys/vicuna-7b-v1.5": 6_738_415_616,
    "lmsys/vicuna-13b-v1.5": 13_015_864_320,
    "meta-llama/Meta-Llama-3-8B-Instruct": 8_030_261_248,
    "mistralai/Mistral-7B-Instruct-v0.2": 7_241_732_096,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1_711_376_384,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
}
"""Parameters as the hub has them (safetensors headers)."""


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_shapes_give_the_published_parameters(name):
    """To the last one, so no dimension is wrong."""
    assert known_models()[name].parameters == PUBLISHED[name]


def test_a_folder_is_read(tmp_path):
    """Its config.json, equal to what transformers makes of it; a wrong one names the key."""
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=500,
        tie_word_embeddings=True,
    )
    config.save_pretrained(tmp_path)
    made = transformers.LlamaForCausalLM(config)
    found = language_model(str(tmp_path))
    assert found.parameters == sum(p.numel() for p in made.parameters())
    # q 64 x 64, k and v 64 x 32, o 64 x 64, gate and up 64 x 96, down 96 x 64
    assert found.adapters(8) == 3 * 8 * (128 + 96 + 96 + 128 + 160 + 160 + 160)
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 64}))
    with pytest.raises(LawError, match="num_hidden_layers"):
        language_model(str(tmp_path))


def test_names_of_language_models():
    """With or without the owner; a wrong one gets the nearest and what else there is."""
    assert language_model("vicuna-7b-v1.5").name == "lmsys/vicuna-7b-v1.5"
    with pytest.raises(UsageError, match=r"did you mean 'lmsys/vicuna-7b-v1\.5'.*config\.json"):
        language_model("lmsys/vicuna-7b-v1.6")


RECORDS = [
    {"id": 1, "image": "a.jpg", "conversations": [{"from": "human", "value": '"image": "x" ?'}]},
    {"id": 2, "image": None, "conversations": [{"from": "gpt", "value": '"conversations": []'}]},
    {"id": 3, "conversations": []},
    {"id": 4, "image": ["a.jpg", "b.jpg"], "conversations": []},
]


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_records_are_counted(tmp_path, sweep, suffix):
    """Keys alone count, not what a text says; null is no image; files are joined by a comma."""
    path = tmp_path / f"data.{suffix}"
    lines = "\n".join(map(json.dumps, RECORDS))
    path.write_text(lines if suffix == "jsonl" else json.dumps(RECORDS, indent=1))
    found = training_records(sweep(), "stage1", str(path))
    assert (found.records, found.images) == (4, 2)
    both = training_records(sweep(), "stage1", f"{path},{path}")
    assert (both.records, both.images) == (8, 4)


def test_what_is_here_goes_before_what_is_said_and_known(tmp_path, sweep):
    """File, then cost.samples, then the table of known data, then `prepare`, else an error."""
    path = tmp_path / "llava_v1_5_mix665k.json"
    known = training_records(sweep(), "stage2", str(path))
    assert (known.records, known.images) == (665_298, 665_298 - 40_688)
    said = training_records(sweep(cost={"samples": {"stage2": 1000}}), "stage2", str(path))
    assert (said.records, said.images) == (1000, round(1000 * 624_610 / 665_298))
    path.write_text(json.dumps(RECORDS))
    assert training_records(sweep(), "stage2", str(path)).records == 4
    making = sweep(prepare=[{"name": "data", "script": "make.py"}])
    assert training_records(making, "stage1", "none.json") is None
    with pytest.raises(UsageError, match=r"none\.json is not there.*samples: \{stage1: N\}"):
        training_records(sweep(), "stage1", "none.json")


def test_known_sets():
    """LLaVA's 558K all have an image; 40,688 of the 665K have none."""
    captions, mix = facts().data_sets
    assert captions.records == captions.images == 558_128
    assert mix.records - mix.images == 40_688
    assert facts().correspondence["SPair-71k"].images == 1800


PAPER = Path(AC_policy.paper.__file__).parent


def paper(name, **wanted):
    """Rows of a shipped table."""
    rows = csv.DictReader((PAPER / name).open())
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def test_published_runs():
    """Table 1's mean and largest, as shipped."""
    rows = paper("table1_policy.csv", quantity="finetunings")
    runs = [int(row["value"]) for row in rows if row["benchmark"] in catalog.benchmarks()]
    published = facts().runs["published"]
    assert len(runs) == 8
    assert sum(runs) / 8 == pytest.approx(published.mean, abs=0.005)
    assert max(runs) == published.most
    assert published.candidates == len(catalog.representations())


@pytest.mark.slow
def test_runs_for_all_benchmarks_together(tmp_path):
    """The policy is asked for all eight, each answer is run, until it stops."""
    scores = paper("table5_scores.csv")
    results = paper("table4_performance.csv")
    table, answer = tmp_path / "table.csv", tmp_path / "answer.json"
    finetuned: list[str] = []
    command = ["policy", "propose", "--table", str(table), "--json", str(answer), "--benchmark"]
    for _ in range(14):
        with table.open("w", newline="") as handle:
            writer = csv.DictWriter(handle, list(scores[0]))
            writer.writeheader()
            writer.writerows(scores)
            writer.writerows(row for row in results if row["representation"] in finetuned)
        words = [sys.executable, "-m", "llava", *command, *catalog.benchmark_sets()["paper8"]]
        subprocess.run(words, check=True, capture_output=True)
        said = json.loads(answer.read_text())
        if said["stop"]:
            break
        finetuned += said["stage2"]
    assert len(finetuned) == facts().runs["ours"].together
