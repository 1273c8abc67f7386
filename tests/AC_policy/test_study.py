"""From tables to studies: what is refused, what is counted, what is never mixed."""

import numpy as np
import pytest

from AC_policy.paper import LAW_TABLES, paper_study
from AC_policy.study import load_study
from llava.errors import TableError, UsageError
from llava.results import read

HEADER = "representation,quantity,benchmark,value,unit,higher_is_better,stderr,protocol,date\n"


@pytest.fixture
def table(tmp_path):
    """Writes rows of (representation, quantity, benchmark, value[, unit, ...]) and loads them."""

    def make(*rows, **options):
        path = tmp_path / "results.csv"
        lines = []
        for row in rows:
            cells = [*map(str, row), *[""] * (9 - len(row))]
            if not cells[4]:
                cells[4] = "fraction" if row[1] == "A_cosine" else "percent"
            lines.append(",".join(cells))
        path.write_text(HEADER + "\n".join(lines) + "\n")
        return load_study([path], **options)

    return make


def scores(name, a, c, benchmark="mme"):
    return [(name, "A_cosine", benchmark, a), (name, "C_pck", "spair71k", c)]


GOOD = [*scores("x", 0.1, 5), *scores("y", 0.2, 3), *scores("z", 0.4, 9)]


def test_the_papers_study():
    study = paper_study()
    assert [len(task.performance) for task in study.tasks.values()] == [13] * 8
    assert all(task.finished for task in study.tasks.values())
    assert study.task("seed-bench (img)").benchmark == "seedbench"
    task = study.task("TextVQA")
    row = task.representations.index("google/siglip-base-patch16-224")
    np.testing.assert_allclose(task.scores[row], [0.532, 0.1289])
    assert task.performance[row] == 36.0


def test_percent_and_fraction_become_one_unit(table):
    study = table(
        *GOOD,
        ("x", "performance", "mme", 0.61, "fraction"),
        ("y", "performance", "mme", 55, "percent"),
        ("z", "performance", "mme", 70.5, "percent"),
    )
    np.testing.assert_allclose(study.task("mme").performance, [61, 55, 70.5])
    assert study.task("mme").unit == "percent"


def test_units_that_do_not_convert_are_refused(table):
    rows = [("x", "performance", "mme", 1500, "points"), ("y", "performance", "mme", 55, "percent")]
    with pytest.raises(TableError, match="points and percent"):
        table(*GOOD, *rows)


def test_protocols_are_never_mixed_and_can_be_chosen(table):
    rows = [
        *GOOD,
        ("x", "performance", "mme", 60, "percent", "", "", "with-ocr"),
        ("y", "performance", "mme", 50, "percent", "", "", "without-ocr"),
    ]
    with pytest.raises(TableError, match=r"'with-ocr' and 'without.*--protocol performance:mme="):
        table(*rows)
    study = table(*rows, protocols={"performance": "without-ocr"})
    assert study.task("mme").finetuned.tolist() == [False, True, False]
    assert study.protocols["performance"] == ["without-ocr"]
    with pytest.raises(UsageError, match="did you mean 'with-ocr'"):
        table(*rows, protocols={"performance": "with-orc"})


def test_protocol_of_one_benchmark(table):
    """Each benchmark has its own; the one that is named for it wins over the one for all."""
    rows = [*GOOD, *scores("x", 0.1, 5, "textvqa_val"), *scores("y", 0.2, 3, "textvqa_val")]
    for benchmark in ("mme", "textvqa_val"):
        for name, value in (("x", 60), ("y", 50)):
            for protocol in ("full", "limit-8"):
                rows.append((name, "performance", benchmark, value, "percent", "", "", protocol))
    both = {"performance:mme": "full", "performance:TextVQA": "limit-8"}
    assert table(*rows, protocols=both).protocols["performance"] == ["full", "limit-8"]
    wins = {"performance": "full", "performance:textvqa_val": "limit-8"}
    study = table(*rows, protocols=wins)
    assert study.protocols["performance"] == ["full", "limit-8"]
    with pytest.raises(TableError, match="performance on textvqa_val has rows of protocols"):
        table(*rows, protocols={"performance:mme": "full"})
    with pytest.raises(UsageError, match="unknown benchmark of performance 'textvqa_vl'; did"):
        table(*rows, protocols={"performance:textvqa_vl": "full"})
    with pytest.raises(UsageError, match="unknown protocol of performance:mme 'ful'"):
        table(*rows, protocols={"performance:mme": "ful"})


def test_unknown_protocol_quantity_is_suggested(table):
    with pytest.raises(UsageError, match="did you mean 'C_pck'"):
        table(*GOOD, ("x", "performance", "mme", 1), protocols={"C_pkc": "x"})


def test_likelihood_is_lower_is_better_and_belongs_to_every_benchmark(table):
    rows = []
    for name, nll, c in (("x", 3.1, 5), ("y", 2.2, 3), ("z", 2.9, 9)):
        rows += [(name, "A_nll", "llava_pretrain", nll, "nats"), (name, "C_pck", "spair71k", c)]
    rows += [("x", "performance", "mme", 1300, "points"), ("y", "performance", "pope", 0.8)]
    study = table(*rows, a="nll")
    for name in ("mme", "pope"):
        np.testing.assert_allclose(study.task(name).scores[:, 0], [-3.1, -2.2, -2.9])
    np.testing.assert_allclose(study.task("mme").measured_scores[:, 0], [3.1, 2.2, 2.9])
    assert study.task("mme").points()[1, 0] == 1  # the lowest likelihood loss is the best aligned


def test_performance_that_is_lower_is_better_is_turned_and_turned_back(table):
    rows = [(n, "performance", "err", v, "percent", "false") for n, v in (("x", 9), ("y", 4))]
    task = table(
        *[row for n, a, c in (("x", 0.1, 5), ("y", 0.2, 3)) for row in scores(n, a, c, "err")],
        *rows,
    ).task("err")
    np.testing.assert_allclose(task.performance, [-9, -4])
    np.testing.assert_allclose(task.sign * task.performance, [9, 4])


def test_directions_that_contradict_each_other_are_refused(table):
    rows = [
        ("x", "performance", "mme", 9, "percent", "false"),
        ("y", "performance", "mme", 4, "percent", "true"),
    ]
    with pytest.raises(TableError, match="higher_is_better"):
        table(*GOOD, *rows)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("x", "performance", "mme", 1)], "no row of quantity 'C_pck'"),
        ([*scores("x", 1, 2), ("x", "performance", "mme", 1)], "1 representation.*at least 2"),
        ([*scores("x", 1, 2), *scores("y", 1, 3), ("x", "performance", "mme", 1)], "A_cosine is 1"),
        (
            [*scores("x", 1, 2), *scores("y", 3, 2), ("x", "performance", "mme", 1)],
            "C_pck is 0.02 for all 2",
        ),
        (GOOD, "no row of quantity 'performance'"),
        (
            [
                *scores("x", 1, 2, "pope"),
                *scores("y", 2, 3, "pope"),
                ("x", "performance", "mme", 1),
                ("x", "performance", "pope", 1),
            ],
            "mme: no row of quantity",
        ),
        ([*GOOD, ("x", "C_pck", "ap10k", 4), ("x", "performance", "mme", 1)], "spair71k and ap10k"),
    ],
)
def test_tables_that_no_law_fits_are_refused(table, rows, message):
    with pytest.raises(TableError, match=message):
        table(*rows)


def test_representations_without_a_score_are_counted(table, caplog):
    import logging

    logging.getLogger("law").propagate = True
    try:
        rows = [("lonely", "performance", "mme", 70), ("x", "performance", "mme", 60)]
        study = table(*GOOD, *rows)
    finally:
        logging.getLogger("law").propagate = False
    assert study.left_out == {"have no A_cosine": ["lonely"], "have no C_pck": ["lonely"]}
    assert "lonely" in caplog.text
    assert "lonely" not in study.task("mme").representations


def test_a_benchmark_that_nothing_is_finetuned_for_can_be_asked_for(table):
    study = table(*GOOD, also=["MME"])
    assert not study.task("mme").finetuned.any()
    with pytest.raises(UsageError, match="did you mean"):
        table(*GOOD, also=["mmbnech"])


def test_unknown_benchmark_is_suggested():
    with pytest.raises(UsageError, match="did you mean 'MMBench'"):
        paper_study().task("MMBnech")
    with pytest.raises(UsageError, match="unknown A score 'cosin'; did you mean 'cosine'"):
        load_study(LAW_TABLES, "cosin")


def test_the_users_rows_can_join_the_papers(tmp_path):
    path = tmp_path / "mine.csv"
    rows = ["mine,C_pck,spair71k,20,percent,published/table5"]
    rows += ["mine,A_cosine,MMBench,0.6,fraction,published/table5"]
    path.write_text("representation,quantity,benchmark,value,unit,protocol\n" + "\n".join(rows))
    study = load_study([path, *LAW_TABLES])
    assert len(study.task("MMBench").representations) == 14
    assert study.task("MMBench").finetuned.sum() == 13
    assert len(study.task("MME").representations) == 13


def test_paper_tables_hold_no_row_twice():
    table = read(LAW_TABLES)
    assert (table.replaced, table.skipped) == (0, 0)
    assert len(table) == 13 * 12 + 13 * 9
