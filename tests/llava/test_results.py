"""The results table: what is appended is read again, and what is no table is refused by line."""

import csv
import fcntl
import gc
import io
import math
import multiprocessing
import os
import re
import resource
import signal
from datetime import datetime
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava import results, results_csv
from llava.errors import LawError, TableError
from llava.results import COLUMNS, ResultRow, ResultsTable, append, read

HEADER = "representation,quantity,benchmark,value,unit"
GOOD = "x,A_cosine,b,0.5,fraction"


def row(**changes) -> ResultRow:
    """A valid row, with some fields changed."""
    fields = {
        "representation": "x",
        "quantity": "A_cosine",
        "benchmark": "b",
        "value": 0.5,
        "unit": "fraction",
        "date": "2026-01-31",
    }
    return ResultRow(**{**fields, **changes})


@pytest.fixture
def table(tmp_path):
    """Writes text (or bytes) as a table file and returns its path."""

    def write(text, name="table.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def rows_of(found: ResultsTable) -> list[tuple]:
    """Rows as tuples, so that two tables can be compared whatever their codes."""
    columns = [
        [found.names[name][code] for code in found.codes[name]] for name in results_csv.CODED
    ]
    numbers = [found.value.tolist(), [repr(x) for x in found.stderr.tolist()]]
    return list(zip(*columns, *numbers, found.higher_is_better.tolist(), strict=True))


# ---------------------------------------------------------------------- round trip


def test_append_then_read(tmp_path):
    """Every column that the table keeps, text that CSV must quote included."""
    rows = [
        row(value=1 / 3, stderr=0.1, n=100, protocol='a,"b"\nc', seed=1, commit="123e4567"),
        row(representation="grün", quantity="A_nll", unit="nats", higher_is_better=False),
        row(benchmark="", quantity="my_own", value=-1e-300, unit="seconds"),
    ]
    path = tmp_path / "deep" / "table.csv"
    append(path, rows)
    found = read(path)
    assert rows_of(found) == [
        ("x", "A_cosine", "b", "fraction", 'a,"b"\nc', 1 / 3, "0.1", True),
        ("grün", "A_nll", "b", "nats", "", 0.5, "nan", False),
        ("x", "my_own", "", "seconds", "", -1e-300, "nan", True),
    ]
    assert (found.replaced, found.skipped, len(found)) == (0, 0, 3)
    assert found.sources == (str(path),)


def test_header_is_written_once(tmp_path):
    """Three appends make one header and three rows."""
    path = tmp_path / "table.csv"
    for seed in range(3):
        append(path, [row(seed=seed)])
    lines = path.read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert len(lines) == 4
    assert sum(line.startswith("representation,") for line in lines) == 1


def test_columns_of_the_design():
    """Other programs write this form too, so names and order are fixed."""
    assert ",".join(COLUMNS) == (
        "representation,quantity,benchmark,value,unit,higher_is_better,stderr,n,protocol,seed,"
        "spec_hash,run_dir,commit,date"
    )


def test_date_is_now_in_utc():
    """A row that is given no date has the time it was made, with its zone."""
    made = datetime.fromisoformat(ResultRow("x", "A_cosine", "b", 0.5, "fraction").date)
    assert made.utcoffset().total_seconds() == 0
    assert abs(datetime.now(made.tzinfo) - made).total_seconds() < 60


def test_append_of_nothing(tmp_path):
    """No rows: a table with its header, which reads as empty."""
    append(tmp_path / "table.csv", [])
    assert len(read(tmp_path / "table.csv")) == 0


RUN = {"run_dir": "elsewhere", "commit": "123", "date": "2026-03-01"}


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({}, 1),
        (RUN, 1),
        *[
            (RUN | {name: value}, 2)
            for name, value in {
                "unit": "percent",
                "stderr": 0.2,
                "n": 3,
                "seed": 1,
                "spec_hash": "ab",
                "higher_is_better": False,
                "value": 0.25,
                "protocol": "p",
            }.items()
        ],
    ],
)
def test_what_is_known_is_skipped(tmp_path, changes, rows):
    """A row that says the same in all but where and when it was measured; a correction is added."""
    path = tmp_path / "table.csv"
    for made in (row(), row(**changes), row(**changes)):
        append(path, [made, made], skip_known=True)
    assert len(path.read_text().splitlines()) == 1 + rows
    append(path, [row()])
    assert len(path.read_text().splitlines()) == 2 + rows


def test_what_was_replaced_is_not_known(tmp_path):
    """A value that comes back counts again; a row that is there already is not added twice."""
    path = tmp_path / "table.csv"
    there = [row(value=float(i % 2), date=f"2026-01-0{i}") for i in (1, 2, 3)]
    for made in (*there, *there):
        append(path, [made], skip_known=True)
    assert len(path.read_text().splitlines()) == 1 + 3
    assert read(path).value.tolist() == [1.0]


def test_known_rows_of_a_table_written_by_hand(table):
    """Fewer columns, a byte order mark, no end of line; an empty file."""
    path = table("\ufeff" + HEADER + ",date\n" + GOOD.replace("0.5", "0.25") + ",2026-01-01")
    append(path, [row()], skip_known=True)
    append(path, [row()], skip_known=True)
    assert read(path).value.tolist() == [0.5]
    assert len(path.read_text().splitlines()) == 3
    path = table("", "empty.csv")
    append(path, [row()], skip_known=True)
    assert len(read(path)) == 1


def test_append_after_a_line_without_its_end(table):
    """An editor may leave the last line open; the new row does not run into it."""
    path = table(",".join(COLUMNS) + "\nx,A_cosine,b,0.5,fraction,,,,,,,,,")
    append(path, [row(benchmark="c")])
    assert len(read(path)) == 2


def test_append_after_windows_line_ends(table):
    """A table saved by a spreadsheet is continued."""
    path = table(",".join(COLUMNS) + "\r\nx,A_cosine,b,0.5,fraction,,,,,,,,,\r\n")
    append(path, [row(benchmark="c")])
    assert len(read(path)) == 2


@pytest.mark.parametrize("text", ["", "\n", "\n\n"])
def test_append_to_a_file_without_content(table, text):
    """What append accepts and fills can be read afterwards."""
    path = table(text)
    append(path, [row()])
    assert len(read(path)) == 1


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "{}\n", "\x00\n", HEADER + ",colour\n"])
def test_append_to_another_file(table, text):
    """A file with other columns is left as it was."""
    path = table(text)
    with pytest.raises(TableError, match="column"):
        append(path, [row()])
    assert path.read_text() == text


def test_append_to_a_folder(tmp_path):
    """A folder is no table."""
    with pytest.raises(TableError, match="Is a directory"):
        append(tmp_path, [row()])


def test_a_table_with_fewer_columns_gets_the_others(table):
    """What was written by hand keeps every cell; the new row keeps its date."""
    path = table(f"\ufeff{HEADER}\n{GOOD}\n\n")
    append(path, [row(benchmark="c", date="2026-05-01")])
    lines = path.read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert lines[1].split(",")[:5] == GOOD.split(",")[:5]
    assert lines[2].endswith(",2026-05-01")
    assert len(read(path)) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": math.nan}, "the value is nan; a failed measurement is not a result"),
        ({"value": -math.inf}, "the value is -inf"),
        ({"unit": "percnt"}, "unknown unit 'percnt'; did you mean 'percent'?"),
        ({"unit": ""}, "unknown unit ''"),
        ({"representation": ""}, "is empty"),
        ({"quantity": ""}, "is empty"),
    ],
)
def test_rows_that_are_none(changes, message):
    """A row that could not be used is refused when it is made."""
    with pytest.raises(TableError) as caught:
        row(**changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"quantity": "A_cosin"},
        {"quantity": " "},
        {"representation": " "},
        {"date": "yesterday"},
        {"value": Fraction(1, 3)},
        {"value": True},
        {"value": np.float32(0.1)},
        {"stderr": "small"},
        {"higher_is_better": "up"},
        {"protocol": "a\rb"},
        {"protocol": "a\r\nb"},
        {"protocol": "a\x00b"},
        {"run_dir": "\udcff"},
        {"protocol": "x" * 200_000},
    ],
    ids=lambda changes: f"{[*changes]} {[*changes.values()]!r:.20}",
)
def test_append_never_spoils_a_table(tmp_path, changes):
    """A row is refused, or the table with it can be read: one row must not cost all others."""
    path = tmp_path / "table.csv"
    append(path, [row(benchmark="before")])
    try:
        append(path, [row(**changes)])
    except LawError:
        assert len(read(path)) == 1
    else:
        assert len(read(path)) == 2


def test_full_disk_leaves_whole_rows(tmp_path):
    """When the disk fills in the middle of an append, what was there can still be read."""
    path = tmp_path / "table.csv"
    append(path, [row(benchmark="before")])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 120, limits[1]))
    try:
        with pytest.raises(TableError, match="cannot be written"):
            append(path, [row(benchmark=f"b{i}") for i in range(20)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert "before" in read(path).names["benchmark"]


# --------------------------------------------------------------------------- locks


def _append_many(path, writer, barrier):
    barrier.wait()
    for seed in range(25):
        append(path, [row(representation=f"r{writer}", seed=seed, protocol=f"p{seed}" * 50)])


def test_processes_append_at_once(tmp_path):
    """Four processes with 25 rows each: none lost, none torn, one header."""
    path = tmp_path / "table.csv"
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    workers = [context.Process(target=_append_many, args=(path, i, barrier)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    with open(path, newline="") as handle:
        lines = list(csv.reader(handle))
    assert len(lines) == 101
    assert {len(line) for line in lines} == {len(COLUMNS)}
    found = read(path)
    keys = {(name, protocol) for name, _, _, _, protocol, *_ in rows_of(found)}
    assert keys == {(f"r{i}", f"p{seed}" * 50) for i in range(4) for seed in range(25)}


def test_held_lock(tmp_path, monkeypatch):
    """The lock file is named, and nothing is written; once it is free the row goes in."""
    monkeypatch.setattr(results, "LOCK_SECONDS", 0.1)
    path = tmp_path / "table.csv"
    with open(tmp_path / "table.csv.lock", "w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(TableError, match=r"table\.csv\.lock: another process has held"):
            append(path, [row()])
        assert not path.exists()
    append(path, [row()])
    assert len(read(path)) == 1


def test_the_lock_is_given_back_after_an_error(table):
    """An append that fails does not block the next one."""
    path = table("a,b\n")
    with pytest.raises(TableError, match="column"):
        append(path, [row()])
    with open(path.with_name("table.csv.lock"), "w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)


# -------------------------------------------------------------- which row is taken


DATED = HEADER + ",date\n"


@pytest.mark.parametrize(
    ("dates", "winner"),
    [
        (["2026-01-02", "2026-01-01"], 0),
        (["2026-01-01", "2026-01-02"], 1),
        (["2026-01-01", "2026-01-01"], 1),
        (["", ""], 1),
        (["2026-01-01", ""], 0),
        (["", "0001-01-01"], 1),
        (["2026-01-01T12:00:00+02:00", "2026-01-01T11:00:00+00:00"], 1),
        (["2026-01-01T12:00:00", "2026-01-01T13:00:00+02:00"], 0),
        (["2026-01-01T00:00:01Z", "2026-01-01"], 0),
        (["2026-01-01", "2025-01-01", "2026-01-01"], 2),
        ([" 2026-01-02 ", "2026-01-01"], 0),
    ],
)
def test_newest_row_wins(table, law_log, dates, winner):
    """By date, a date without zone being UTC and none the oldest; of equal dates the later row."""
    lines = [f"x,A_cosine,b,{i},fraction,{date}" for i, date in enumerate(dates)]
    found = read(table(DATED + "\n".join(lines)))
    assert found.value.tolist() == [winner]
    assert found.replaced == len(dates) - 1
    assert any(f"{len(dates) - 1} rows are replaced by newer rows" in line for line in law_log)


def test_any_difference_of_the_key_is_another_result(table):
    """Representation, quantity, benchmark and protocol make the key; the unit does not."""
    found = read(
        table(
            HEADER + ",protocol,seed\n"
            "x,A_cosine,b,1,fraction,p,1\n"
            "y,A_cosine,b,2,fraction,p,1\n"
            "x,A_nll,b,3,nats,p,1\n"
            "x,A_cosine,c,4,fraction,p,1\n"
            "x,A_cosine,b,5,fraction,q,1\n"
            "x,A_cosine,b,6,percent,p,2\n"
        )
    )
    assert found.value.tolist() == [2, 3, 4, 5, 6]
    assert found.replaced == 1


def test_the_later_file_counts_as_the_later_place(table):
    """Of equal dates in two files the second file's row is taken."""
    one = table(f"{HEADER}\nx,A_cosine,b,1,fraction\n", "1.csv")
    two = table(f"{HEADER}\nx,A_cosine,b,2,fraction\n", "2.csv")
    assert read([one, two]).value.tolist() == [2]
    assert read([two, one]).value.tolist() == [1]
    assert read([one, two]).sources == (str(one), str(two))
    assert read(iter([one, two])).replaced == 1


def test_files_with_different_columns_make_one_table(table):
    """A column that one file lacks is empty there."""
    one = table(f"{HEADER}\n{GOOD}\n", "1.csv")
    two = table(
        "unit,value,benchmark,quantity,representation,protocol\nnats,2,b,A_nll,y,p", "2.csv"
    )
    assert rows_of(read([one, two])) == [
        ("x", "A_cosine", "b", "fraction", "", 0.5, "nan", True),
        ("y", "A_nll", "b", "nats", "p", 2.0, "nan", False),
    ]


def test_no_files():
    """Nothing to read is an empty table."""
    assert len(read([])) == 0


@pytest.mark.parametrize("value", ["", " ", "nan", "NaN", "inf", "-inf", "1e999"])
def test_rows_without_a_finite_value(table, law_log, value):
    """They are counted and left out, and replace nothing although they are newer."""
    text = f"{DATED}x,A_cosine,b,1,fraction,2020-01-01\nx,A_cosine,b,{value},fraction,2021-01-01\n"
    found = read(table(text))
    assert found.value.tolist() == [1.0]
    assert (found.skipped, found.replaced) == (1, 0)
    assert any("1 rows have no finite value" in line for line in law_log)


def test_nothing_to_say_about_a_clean_table(table, law_log):
    """No warning where nothing is left out."""
    read(table(f"{HEADER}\n{GOOD}\n"))
    assert law_log == []


CELLS = st.tuples(
    st.sampled_from(["x", "y"]),
    st.sampled_from(["A_cosine", "A_nll"]),
    st.sampled_from(["b", "c", ""]),
    st.sampled_from(["", "nan", "0.25", "-3e2", "7"]),
    st.sampled_from(["fraction", "percent"]),
    st.sampled_from(["", "2024-01-01", "2025-06-01T10:00:00+00:00", "2025-06-01T12:00:00+02:00"]),
    st.sampled_from(["", "p"]),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cells=st.lists(CELLS, max_size=12), chunk=st.sampled_from([1, 2, 3, 5, 1024]))
def test_against_a_simple_model(tmp_path_factory, cells, chunk):
    """The rows taken and the counts, against a dictionary filled row by row."""
    path = tmp_path_factory.mktemp("table") / "table.csv"
    with open(path, "w", newline="") as handle:
        csv.writer(handle).writerows([(*HEADER.split(","), "date", "protocol"), *cells])
    newest = {}
    finite = 0
    for place, (name, quantity, benchmark, value, unit, date, protocol) in enumerate(cells):
        if value in ("", "nan"):
            continue
        finite += 1
        moment = datetime.fromisoformat(date) if date else datetime.min
        when = moment.replace(tzinfo=None) - (moment.utcoffset() or datetime.min - datetime.min)
        key = name, quantity, benchmark, protocol
        if key not in newest or (when, place) > newest[key][:2]:
            newest[key] = when, place, float(value), unit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results_csv, "CHUNK_ROWS", chunk)
        found = read(path)
    kept = sorted((place, key, value, unit) for key, (_, place, value, unit) in newest.items())
    assert [(n, q, b, p, v, u) for n, q, b, u, p, v, *_ in rows_of(found)] == [
        (*key, value, unit) for _, key, value, unit in kept
    ]
    assert found.skipped == len(cells) - finite
    assert found.replaced == finite - len(kept)


# -------------------------------------------------------------------------- columns


@pytest.mark.parametrize(
    ("quantity", "cell", "expected"),
    [
        ("A_cosine", "", True),
        ("A_nll", "", False),
        ("my_own", "", True),
        ("A_nll", "true", True),
        ("A_nll", " TRUE ", True),
        ("A_nll", "1", True),
        ("performance", "false", False),
        ("performance", "False", False),
        ("performance", "0", False),
    ],
)
def test_direction(table, quantity, cell, expected):
    """What the cell says; an empty cell takes the quantity's usual direction."""
    text = f"{HEADER},higher_is_better\nx,{quantity},b,1,points,{cell}\n"
    assert read(table(text)).higher_is_better.tolist() == [expected]


def test_direction_without_the_column(table):
    """A table need not say it."""
    text = f"{HEADER}\nx,A_nll,b,1,nats\nx,A_cosine,b,1,fraction\n"
    assert read(table(text)).higher_is_better.tolist() == [False, True]


@pytest.mark.parametrize(
    ("column", "written", "name"),
    [
        ("benchmark", "MMBench", "mmbench_en_dev"),
        ("benchmark", "scienceqa (img)", "scienceqa_img"),
        ("benchmark", " mme ", "mme"),
        ("benchmark", "spair71k", "spair71k"),
        ("representation", "CLIP@336", "openai/clip-vit-large-patch14-336"),
        ("representation", "My/Tower", "My/Tower"),
    ],
)
def test_names_go_through_the_catalog(table, column, written, name):
    """Aliases become ids; a user's own names stay as they are written."""
    cells = dict(zip(HEADER.split(","), GOOD.split(","), strict=True)) | {column: written}
    found = read(table(",".join(cells) + "\n" + ",".join(cells.values())))
    assert found.names[column] == [name]


def test_alias_and_id_are_one_key(table):
    """The same measurement under two names replaces itself."""
    text = f"{HEADER}\nCLIP@336,performance,MMBench,1,percent\n"
    text += "openai/clip-vit-large-patch14-336,performance,mmbench_en_dev,2,percent\n"
    found = read(table(text))
    assert found.value.tolist() == [2.0]
    assert found.replaced == 1


def test_rows_of_and_present(table):
    """Selection by name; names that occur in no chosen row are not listed."""
    text = f"{HEADER}\nz,A_cosine,c,1,fraction\ny,A_nll,b,2,nats\nz,A_cosine,a,3,fraction\n"
    found = read(table(text))
    assert found.rows_of("representation", "z").tolist() == [True, False, True]
    assert found.rows_of("representation", "nobody").tolist() == [False] * 3
    cosine = found.rows_of("quantity", "A_cosine")
    assert found.present("benchmark", cosine) == ["c", "a"]
    assert found.present("representation", cosine) == ["z"]
    assert found.present("unit", np.zeros(3, bool)) == []
    text = f"{HEADER}\nx,A_nll,c,1,nats\nx,A_cosine,a,2,fraction\nx,A_cosine,c,3,fraction\n"
    found = read(table(text))
    assert found.present("benchmark", found.rows_of("quantity", "A_cosine")) == ["a", "c"]


def test_byte_order_mark(table):
    """A spreadsheet's "CSV UTF-8" begins with one."""
    assert len(read(table(f"\ufeff{HEADER}\n{GOOD}\n"))) == 1


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends(table, end):
    """Unix, Windows, and old spreadsheets."""
    found = read(table(end.join([HEADER, GOOD, "y,A_cosine,b,1,percent", ""])))
    assert found.names["unit"] == ["fraction", "percent"]


def test_header_only(table):
    """A table without rows is an empty table."""
    found = read(table(HEADER + "\n"))
    assert len(found) == 0
    assert (found.replaced, found.skipped) == (0, 0)
    assert found.rows_of("quantity", "A_cosine").tolist() == []


def test_spaces_around_cells(table):
    """People align columns."""
    found = read(table(HEADER.replace(",", " , ") + "\n" + GOOD.replace(",", " , ") + "\n"))
    assert rows_of(found) == [("x", "A_cosine", "b", "fraction", "", 0.5, "nan", True)]


@pytest.mark.parametrize("column", ["value", "stderr", "date", "protocol", "higher_is_better"])
def test_a_cell_of_spaces_is_empty(table, column):
    """In every column that may be empty."""
    names = [*HEADER.split(","), "stderr", "date", "protocol", "higher_is_better"]
    cells = dict(zip(names, [*GOOD.split(","), "", "", "", ""], strict=True))
    first = ",".join(cells.values())
    second = ",".join((cells | {column: "  ", "benchmark": "c"}).values())
    third = ",".join((cells | {"date": "2026-01-01", "benchmark": "d"}).values())
    found = read(table("\n".join([",".join(names), first, second, third])))
    assert len(found) + found.skipped == 3


@pytest.mark.parametrize("name", ["notes", "comment", "speed", "dataset", "zzz"])
def test_unknown_column_is_ignored(table, law_log, name):
    """With a warning that names it; with all our columns there it is no misspelling of one."""
    header = ",".join([*COLUMNS, name])
    found = read(table(f"{header}\n{GOOD},,,,,,,,,,\n"))
    assert len(found) == 1
    assert law_log == [line for line in law_log if "WARNING" in line and f"'{name}'" in line]
    assert len(law_log) == 1


# ---------------------------------------------------------------------- bad tables


def body(line: str) -> str:
    """A table whose second line is good and whose third is `line`."""
    return f"{HEADER}\n{GOOD}\n{line}\n"


BAD = {
    "empty file": ("", "the file is empty; expected a header representation,"),
    "blank lines": ("\n\n", "the file is empty"),
    "missing column": (
        "representation,quantity,benchmark,value\nx,A_cosine,b,1\n",
        "column(s) unit missing; found representation, quantity, benchmark, value",
    ),
    "no header": (f"{GOOD}\n", "column(s) representation, quantity, benchmark, value, unit"),
    "misspelled column": (
        f"{HEADER},protocl\n{GOOD},p\n",
        "unknown column 'protocl'; did you mean 'protocol'?",
    ),
    "column in capitals": (f"{HEADER},Date\n{GOOD},\n", "did you mean 'date'?"),
    "duplicated column": (f"{HEADER},value\n{GOOD},1\n", "column 'value' stands there twice"),
    "semicolons": (
        f"{HEADER}\n{GOOD}\n".replace(",", ";"),
        "separate columns with commas",
    ),
    "tabs": (f"{HEADER}\n{GOOD}\n".replace(",", "\t"), "separate columns with commas"),
    "short row": (body("x,A_cosine,b,1"), "line 3: 4 fields where the header has 5"),
    "long row": (body(GOOD + ",1"), "line 3: 6 fields where the header has 5"),
    "text in value": (
        body("y,A_cosine,b,high,fraction"),
        "line 3, column value: expected a number with a decimal point, got 'high'",
    ),
    "decimal comma": (body('y,A_cosine,b,"0,5",fraction'), "line 3, column value: expected"),
    "text in stderr": (
        f"{HEADER},stderr\n{GOOD},0.1\n{GOOD},small\n",
        "line 3, column stderr: expected a number",
    ),
    "bad date": (
        f"{DATED}{GOOD},2026-01-31\n{GOOD},31.01.2026\n",
        "line 3, column date: expected ISO 8601 such as 2026-01-31",
    ),
    "no such day": (f"{DATED}{GOOD},2026-02-30\n", "line 2, column date: expected ISO 8601"),
    "bad unit": (
        body("y,A_cosine,b,1,percnt"),
        "line 3, column unit: unknown unit 'percnt'; did you mean 'percent'?",
    ),
    "empty unit": (body("y,A_cosine,b,1,"), "line 3, column unit: unknown unit ''"),
    "near miss of a quantity": (
        body("y,A_cosin,b,1,fraction"),
        "line 3, column quantity: unknown quantity 'A_cosin'; did you mean 'A_cosine'?",
    ),
    "quantity in another case": (body("y,a_nll,b,1,nats"), "did you mean 'A_nll'?"),
    "empty quantity": (body("y,,b,1,nats"), "line 3, column quantity: is empty; expected one of"),
    "empty representation": (
        body(",A_cosine,b,1,fraction"),
        "line 3, column representation: is empty",
    ),
    "bad direction": (
        f"{HEADER},higher_is_better\n{GOOD},true\n{GOOD},yes\n",
        "line 3, column higher_is_better: expected true or false, got 'yes'",
    ),
    "latin-1": (f"{HEADER}\ngrün,A_cosine,b,1,nats\n".encode("latin-1"), "not UTF-8 text"),
    "utf-16": (f"{HEADER}\n{GOOD}\n".encode("utf-16"), "not UTF-8 text"),
    "utf-16 without a mark": (f"{HEADER}\n{GOOD}\n".encode("utf-16-le"), "missing"),
    "NUL in a number": (body("y,A_cosine,b,1\0,fraction"), "line 3"),
    "only NUL": ("\0" * 64, "missing"),
    "open quote": (body('y,A_cosine,b,1,"fraction'), "not valid CSV"),
    "text after a quote": (body('y,"A"_cosine,b,1,fraction'), "line 3: not valid CSV"),
    "very long cell": (body("y,A_cosine,b,1," + "f" * 200_000), "not valid CSV: field larger"),
    "a picture": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "not UTF-8 text"),
    "a web page": ("<!DOCTYPE html>\n<html></html>\n", "missing; found <!DOCTYPE html>"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_table(table, case):
    """Each message begins with the file and says what is wrong."""
    text, message = BAD[case]
    path = table(text)
    with pytest.raises(TableError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_quantity_of_a_user(table):
    """Other quantities may stand beside ours; the policy does not read them."""
    quantities = ["latency", "first_hit_at_3", "resolution", "C_geo", "pck"]
    lines = [f"x,{quantity},b,1,count" for quantity in quantities]
    assert read(table("\n".join([HEADER, *lines]))).names["quantity"] == quantities


@pytest.mark.parametrize("quantity", ["A_cosine_std", "performance_std", "C_pck_dog"])
def test_quantity_named_after_ours(table, quantity):
    """A name that continues one of ours is meant, not misspelled."""
    assert len(read(table(body(f"x,{quantity},b,1,fraction")))) == 2


def test_no_such_file(tmp_path, monkeypatch):
    """A relative path is wrong mostly for where one stands, so that is told."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TableError, match=r"^nothing\.csv: no such table") as caught:
        read("nothing.csv")
    assert str(tmp_path) in str(caught.value)


def test_folder_for_a_file(tmp_path):
    """A folder is no table."""
    with pytest.raises(TableError, match="cannot be read: Is a directory"):
        read(tmp_path)


def test_unreadable_file(table, monkeypatch):
    """What the system says is passed on (root may read any file, so the refusal is made)."""

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    path = table(f"{HEADER}\n{GOOD}\n")
    monkeypatch.setattr(results_csv, "open", refuse, raising=False)
    with pytest.raises(TableError, match=r"table\.csv: cannot be read: Permission denied"):
        read(path)


def test_the_second_file_is_named(table):
    """Of several files the one with the error is told."""
    good = table(f"{HEADER}\n{GOOD}\n", "good.csv")
    bad = table(body("x"), "bad.csv")
    with pytest.raises(TableError, match=r"bad\.csv: line 3"):
        read([good, bad])


def test_a_pipe():
    """A table from another command (`<(...)`) can be read once only; its errors still are ours."""
    reading, writing = os.pipe()
    os.write(writing, body("x,A_cosine,b,high,fraction").encode())
    os.close(writing)
    try:
        with pytest.raises(TableError, match="column value: expected a number"):
            read(f"/dev/fd/{reading}")
    finally:
        os.close(reading)


def test_the_collector_is_left_as_it_was(table):
    """Reading pauses it; afterwards it runs again, after an error too."""
    assert gc.isenabled()
    read(table(f"{HEADER}\n{GOOD}\n"))
    assert gc.isenabled()
    with pytest.raises(TableError):
        read(table(body("x")))
    assert gc.isenabled()
    gc.disable()
    try:
        read(table(f"{HEADER}\n{GOOD}\n"))
        assert not gc.isenabled()
    finally:
        gc.enable()


# --------------------------------------------------------------------- line numbers


ERRORS = {
    "ragged": ("y,A_cosine,b,1", "4 fields"),
    "value": ("y,A_cosine,b,high,fraction,,", "column value"),
    "unit": ("y,A_cosine,b,1,percnt,,", "column unit"),
    "quantity": ("y,A_cosin,b,1,fraction,,", "column quantity"),
    "date": ("y,A_cosine,b,1,fraction,x,", "column date"),
    "direction": ("y,A_cosine,b,1,fraction,,x", "column higher_is_better"),
    "quote": ('y,"A"x,b,1,fraction,,', "not valid CSV"),
}


@pytest.mark.parametrize("chunk", [1, 2, 3, 1024])
@pytest.mark.parametrize("place", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("kind", ERRORS)
def test_line_of_an_error(table, monkeypatch, kind, place, chunk):
    """Exact after blank lines and cells of several lines, in any chunk."""
    monkeypatch.setattr(results_csv, "CHUNK_ROWS", chunk)
    bad, message = ERRORS[kind]
    lines = [HEADER + ",date,higher_is_better"]
    for i in range(9):
        if i == place:
            expected = 1 + sum(line.count("\n") + 1 for line in lines)
            lines.append(bad)
        else:
            name = '"two\nlines"' if i % 3 == 1 else f"r{i}"
            lines.append(f"{name},A_cosine,b,0.5,fraction,2026-01-31,true" + "\n" * (i % 2))
    with pytest.raises(TableError) as caught:
        read(table("\n".join(lines)))
    assert re.search(rf"line {expected}\b", str(caught.value))
    assert message in str(caught.value)


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 7])
def test_chunks_make_no_difference(table, monkeypatch, chunk):
    """A file read in pieces is the table read at once: names, order, counts."""
    lines = [f"{HEADER},stderr,date,protocol,higher_is_better"]
    for i in range(20):
        quantity, unit = ("A_nll", "nats") if i % 4 else ("C_pck", "percent")
        date = "" if i % 5 < 3 else f"2026-01-{i + 1:02}"
        value = "" if i == 6 else i / 7
        line = f"r{i % 3},{quantity},b{i % 2},{value},{unit},{i if i > 9 else ''},{date},p,"
        lines.append(line + "\n" * (i % 2))
    path = table("\n".join(lines))
    whole = read(path)
    assert whole.replaced > 0
    monkeypatch.setattr(results_csv, "CHUNK_ROWS", chunk)
    parts = read(path)
    assert rows_of(parts) == rows_of(whole)
    assert parts.names == whole.names
    assert (parts.replaced, parts.skipped) == (whole.replaced, whole.skipped)


def test_the_byte_that_is_not_utf8(table):
    """Counted from the beginning of the file, also far into it."""
    text = (f"{HEADER}\n" + f"{GOOD}\n" * 2000).encode()
    with pytest.raises(TableError) as caught:
        read(table(text + b"\xe9,A_cosine,b,1,fraction\n"))
    message = str(caught.value)
    assert f"byte {len(text)}" in message or "line 2002" in message


# ----------------------------------------------------------------------------- fuzz


def _read_or_table_error(path) -> None:
    """The property of all the fuzzing below."""
    try:
        found = read(path)
    except TableError as error:
        assert str(error).startswith(f"{path}: ")
        return
    assert np.isfinite(found.value).all()
    sizes = {len(found.value), len(found.stderr), len(found.higher_is_better)}
    assert {*sizes, *map(len, found.codes.values())} == {len(found)}
    assert all(
        (codes >= 0).all() and (codes < len(found.names[name])).all()
        for name, codes in found.codes.items()
    )


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    start=st.sampled_from([b"", HEADER.encode() + b"\n", f"{HEADER}\n{GOOD}\n".encode()]),
    data=st.binary(max_size=80) | st.text('xA_b1,;"\n\r 0.e-\0', max_size=60).map(str.encode),
)
def test_any_bytes(tmp_path_factory, start, data):
    """A table or a TableError, never another exception."""
    path = tmp_path_factory.mktemp("table") / "table.csv"
    path.write_bytes(start + data)
    _read_or_table_error(path)


VALID = [
    row(representation="CLIP@336", benchmark="MMBench", stderr=0.01, n=100, spec_hash="ab12"),
    row(representation="mine", quantity="A_nll", unit="nats", higher_is_better=False, date=""),
    row(quantity="performance", benchmark="mme", value=1502.7, unit="points", protocol="p"),
    row(representation='a "b", c', quantity="C_pck", unit="percent", protocol="x\ny"),
]
REPLACEMENTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(["", " ", "nan", "inf", "-1e999", "1_0", "１", "0x1", "true", "A_cosin", '"']),
    st.sampled_from(["percent", "2026-13-01", "0001-01-01T00:00:00+23:59", "\r", "\n", "\0"]),
    st.just("9999-12-31T23:59:59-23:59"),
)
MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(["cell", "raw", "delete", "double", "swap", "cut"]),
        st.integers(0, 4),
        st.integers(0, 13),
        REPLACEMENTS,
    ),
    min_size=1,
    max_size=4,
)


def _quoted(rows) -> list[str]:
    """Rows as lines of CSV."""
    lines = []
    for cells in rows:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(cells)
        lines.append(text.getvalue()[:-1])
    return lines


def _valid_rows() -> list[list[str]]:
    """Header and cells of the table that is mutated."""
    return [list(COLUMNS), *([results._cell(getattr(r, c)) for c in COLUMNS] for r in VALID)]


def _mutated(mutations) -> str:
    """The valid table after each mutation: cells replaced, lines deleted, doubled, swapped, cut."""
    rows = _valid_rows()
    for kind, line, column, text in mutations:
        if kind == "cell":
            rows[line % len(rows)][column] = text
    lines = _quoted(rows)
    for kind, line, column, text in mutations:
        line %= max(len(lines), 1)
        if not lines or kind == "cell":
            continue
        if kind == "raw":
            cells = lines[line].split(",")
            cells[column % len(cells)] = text
            lines[line] = ",".join(cells)
        elif kind == "delete":
            del lines[line]
        elif kind == "double":
            lines.insert(line, lines[line])
        elif kind == "swap":
            other = column % len(lines)
            lines[line], lines[other] = lines[other], lines[line]
        else:
            lines[line] = lines[line][: len(lines[line]) * column // 14]
    return "\n".join(lines) + "\n"


def test_the_table_that_is_mutated_is_valid(table):
    """Otherwise the fuzzing would only ever see its first error."""
    assert len(read(table("\n".join(_quoted(_valid_rows()))))) == len(VALID)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(mutations=MUTATIONS, chunk=st.sampled_from([1, 2, 1024]))
def test_mutated_tables(tmp_path_factory, mutations, chunk):
    """A table or a TableError, never another exception."""
    path = tmp_path_factory.mktemp("table") / "table.csv"
    path.write_bytes(_mutated(mutations).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results_csv, "CHUNK_ROWS", chunk)
        _read_or_table_error(path)
