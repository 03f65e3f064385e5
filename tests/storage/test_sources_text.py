"""CSV and JSON Lines: where rows begin, what they hold, and which row is wrong."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploykit.errors import DataError
from deploykit.sources import KEPT, csvfile
from deploykit.sources.csvvalues import NULLS
from deploykit.sources.textindex import OpenQuoteError, text_pieces
from deploykit.tensors import TensorSpec

from . import helpers
from .helpers import X
from .test_sources_tables import opened

V = TensorSpec(name="v", dtype="float64", shape=("batch",))
K = TensorSpec(name="k", dtype="int64", shape=("batch",))


@given(
    rows=st.lists(st.lists(st.text('ab",\n\r', max_size=4), min_size=2, max_size=2), max_size=30),
    end=st.sampled_from(["\n", "\r\n"]),
    block=st.integers(1, 40),
    blank=st.lists(st.integers(0, 30), max_size=3),
    last=st.booleans(),
)
def test_pieces_of_csv_hold_whole_rows(rows: Any, end: str, block: int, blank: list[int], last: bool) -> None:
    lines = ["a,b" + end]
    for row in rows:
        out = io.StringIO()
        csv.writer(out, lineterminator=end, quoting=csv.QUOTE_ALL).writerow(row)
        lines.append(out.getvalue())
    for place in blank:
        lines.insert(min(place, len(lines)), end)
    text = "".join(lines).encode()
    if last and not blank:
        text = text.removesuffix(end.encode())
    pieces = text_pieces(io.BytesIO(text), delimiter=b",", header=True, block_bytes=block)
    found = []
    for start, stop, count in pieces:
        part = [r for r in csv.reader(io.StringIO(text[start:stop].decode(), newline="")) if r]
        assert len(part) == count > 0
        found += part
    assert found == rows


@given(text=st.text('ab",\n\r', max_size=30), block=st.integers(1, 40))
def test_any_text_is_divided_as_python_reads_it_or_refused_where_strict_readers_refuse(text: str, block: int) -> None:
    data = ("a,b\n" + text).encode()

    def rows_of(part: bytes, strict: bool = False) -> list[list[str]]:
        return list(filter(None, csv.reader(io.StringIO(part.decode(), newline=""), strict=strict)))

    problem = ""
    try:
        rows_of(data, strict=True)
    except csv.Error as error:
        problem = str(error)
    try:
        pieces = text_pieces(io.BytesIO(data), delimiter=b",", header=True, block_bytes=block)
    except OpenQuoteError:
        assert problem
        return
    assert problem != "unexpected end of data"
    found = [rows_of(data[start:stop]) for start, stop, _ in pieces]
    assert [len(part) for part in found] == [count for _, _, count in pieces]
    assert [row for part in found for row in part] == rows_of(data)[1:]


@pytest.mark.parametrize(
    ("name", "header", "between"),
    [
        ("rows.csv", "f0{0}f1{0}note", ","),
        ("rows.csv", "f0{0}f1{0}note", ";"),
        ("rows.csv", '"f0"{0}"f1"{0}"note"', ";"),
        ("rows.csv", 'f0{0}f1{0}note{0}"more, or less"', ";"),
        ("rows.csv", "f0{0}f1{0}note", "|"),
        ("rows.csv", "f0{0}f1{0}note", "\t"),
        ("rows.csv", "f0{0}f1{0}note{0}of a; or b|c", ","),
        ("rows.tsv", "f0{0}f1{0}note", "\t"),
        ("rows.tsv", "f0{0}f1{0}note{0}of a, b", "\t"),
        ("rows.tsv", "f0{0}f1{0}note", ","),
    ],
)
def test_values_lie_between_what_the_names_of_the_header_lie_between(
    tmp_path: Path, name: str, header: str, between: str
) -> None:
    place, notes = tmp_path / name, ["a", 'a line end,;|\t\n and a " mark', "1,5;6|7\t8"]
    names = header.format(between)
    with place.open("w", newline="") as file:
        file.write(f"\ufeff{names}\r\n")
        more = [0] * (len(next(csv.reader([names], delimiter=between))) - 3)
        csv.writer(file, delimiter=between).writerows([[row, row + 0.5, note, *more] for row, note in enumerate(notes)])
    source = opened(place, [TensorSpec(name="x", dtype="float32", shape=("batch", 2))],
                    columns={"x": ["f0", "f1"]}, keep=["note"])  # fmt: skip
    found = source.read(0, 3)
    assert found["x"].tolist() == [[0, 0.5], [1, 1.5], [2, 2.5]]
    assert found[f"{KEPT}note"].tolist() == notes


def test_a_decimal_comma_is_no_number(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("v;k\n1,5;2\n")
    with pytest.raises(DataError, match=r"float64 +v is text \(row 0: '1,5'\)"):
        opened(tmp_path / "rows.csv", [V])


STRAY = {
    "to the end": '1,"broken',
    "to the next quote": '1,"broken\n5,"fine"',
    "after quoted ones": '"1","broken\n5,""\n5,"a\nb"',
}


@pytest.mark.parametrize("block", [30, 2**22])
@pytest.mark.parametrize("case", STRAY)
def test_a_stray_quote_takes_no_rows_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, block: int
) -> None:
    monkeypatch.setattr(text_pieces, "__kwdefaults__", {"block_bytes": block})
    good = [f"{row},ok {row}\n" for row in range(100)]
    path = put(tmp_path / "rows.csv", "".join(["v,note\n", *good[:60], STRAY[case] + "\n", *good]))
    with pytest.raises(DataError, match=r"row 60: the quote that opens the value '\"broken.* rows would be lost"):
        opened(path, [V])
    with pytest.raises(DataError, match=r"header: the quote that opens"):
        opened(put(path, 'v,"note\n1,2\n'), [V])


def test_a_quote_that_is_not_closed_for_long_is_refused_before_all_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploykit.sources.textindex._MOST_QUOTED_BYTES", 1000)
    file = io.BytesIO(b'a,b\n1,"x""' + b'5,""\n' * 100_000)
    with pytest.raises(OpenQuoteError, match="not closed within 1000 bytes"):
        text_pieces(file, delimiter=b",", header=True, block_bytes=100)
    assert file.tell() < 10_000


def test_a_value_may_be_longer_than_the_csv_module_takes_by_itself(tmp_path: Path) -> None:
    before, rows = csv.field_size_limit(131_072), 10
    try:
        path = put(tmp_path / "rows.csv", "v,note\n" + f"1,{'x' * 200_000}\n" * rows + "bad,short\n")
        source = opened(path, [V], keep=("note",))
        assert list(map(len, source.read(0, rows)[f"{KEPT}note"])) == [200_000] * rows
        with pytest.raises(DataError, match=rf"row {rows}: column 'v': 'bad' is no"):
            source.read(0, rows + 1)
    finally:
        csv.field_size_limit(before)


def test_quotes_within_values_are_text(tmp_path: Path) -> None:
    names = ['5" pipe', '6"', 'a "b" c', '"', '""', 'x"y"z', 'two, "of"\nthem']
    shown = [
        name if number < 3 or number == 5 else '"' + name.replace('"', '""') + '"' for number, name in enumerate(names)
    ]
    text = "v,note\n" + "".join(f"{row},{shown[row % 7]}\n" for row in range(700))
    source = opened(put(tmp_path / "rows.csv", text), [V], keep=("note",))
    assert source.read(0, 700)[f"{KEPT}note"].tolist() == [names[row % 7] for row in range(700)]
    # What pyarrow puts behind a closed quote stays in its row.
    source = opened(put(tmp_path / "rows.csv", 'v,note\n1,"a"b"c\n2,d\n'), [V], keep=("note",))
    assert source.read(0, 2)[f"{KEPT}note"].tolist() == ['ab"c', "d"]


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_lines_may_end_with_carriage_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    monkeypatch.setattr("deploykit.sources.csvfile.SAMPLE_BYTES", 200)
    monkeypatch.setattr(text_pieces, "__kwdefaults__", {"block_bytes": 300})
    lines = ["k,note", *(f'{row},"a{end}b"' for row in range(1000)), ""]
    (tmp_path / "rows.csv").write_bytes((end.join(lines) + end).encode())
    source = opened(tmp_path / "rows.csv", [K], keep=("note",))
    assert source.read(0, len(source))["k"].tolist() == list(range(1000))
    assert set(source.read(0, 1000)[f"{KEPT}note"]) == {f"a{end}b"}


@given(
    rows=st.lists(st.sampled_from(['{"a":1}', "", "  ", '{"a": "x"}', "\t", "\r"]), max_size=30),
    block=st.integers(1, 40),
    last=st.booleans(),
    mark=st.booleans(),
)
def test_pieces_of_json_lines_hold_whole_rows(rows: list[str], block: int, last: bool, mark: bool) -> None:
    text = (b"\xef\xbb\xbf" if mark else b"") + ("\n".join(rows) + ("\n" if last else "")).encode()
    pieces = text_pieces(io.BytesIO(text), delimiter=None, header=False, block_bytes=block)
    found = []
    for start, stop, count in pieces:
        part = [line for line in text[start:stop].split(b"\n") if line.strip()]
        assert len(part) == count > 0
        found += part
    assert [line.decode() for line in found] == [row for row in rows if row.strip()]


def test_csv_with_quoted_line_feeds_in_many_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploykit.sources.textindex.BLOCK_BYTES", 64)
    monkeypatch.setattr(text_pieces, "__kwdefaults__", {"block_bytes": 64})
    rows = [[row / 7, f'a "quoted"\n{row}', row] for row in range(200)]
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([["v", "note", "k"], *rows])
    source: Any = opened(tmp_path / "rows.csv", [V, K], keep=("note",))
    assert len(source) == 200
    assert len(source.index()[0]) > 20
    for start, stop in [(0, 200), (77, 91), (3, 4)]:
        got = source.read(start, stop)
        assert got["v"].tolist() == [row / 7 for row in range(start, stop)]
        assert got["k"].tolist() == list(range(start, stop))
        assert got[f"{KEPT}note"].tolist() == [f'a "quoted"\n{row}' for row in range(start, stop)]


def put(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@settings(max_examples=50)
@given(values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_numbers_are_those_that_python_reads(tmp_path_factory: Any, values: list[float]) -> None:
    folder = tmp_path_factory.mktemp("a")
    put(folder / "r.csv", "x\n" + "".join(f"{value!r}\n" for value in values))
    put(folder / "r.jsonl", "".join(json.dumps({"x": value}) + "\n" for value in values))
    spec = TensorSpec(name="x", dtype="float32", shape=("batch",))
    for name in ("r.csv", "r.jsonl"):
        got = opened(folder / name, [spec]).read(0, len(values))["x"]
        assert got.tobytes() == np.array(values, np.float32).tobytes()


@pytest.mark.parametrize(("name", "text"), [("rows.jsonl", ""), ("rows.jsonl", "\n"), ("rows.csv", "k,id\n")])
def test_a_night_without_rows(tmp_path: Path, name: str, text: str) -> None:
    """As a file with types has: nothing says of which these columns would be, and nothing is read of them."""
    vectors = TensorSpec(name="tokens", dtype="int64", shape=("batch", "length"))
    path = put(tmp_path / name, text)
    source: Any = opened(path, [K, vectors], keep=("id",), columns={"tokens": ["t*"]}, pad={"tokens": 0})
    assert len(source) == 0
    got = source.read(0, 0)
    assert {key: (array.dtype.name, array.shape) for key, array in got.items()} == {
        "k": ("int64", (0,)), "tokens": ("int64", (0, 0)), f"{KEPT}id": ("float64", (0,)),
    }  # fmt: skip
    assert source.notes == [
        "there are no rows, so nothing says whether the columns give the inputs, nor of which type id would be: "
        "float64 stands for it"
    ]


BAD_CSV = {
    "too few": ("v,k\n1,1\n2\n", r"row 1: 1 value, the header names 2"),
    "too many": ("v,k\n1,1\n2,2,2\n", r"row 1: 3 values"),
    "text first": ("v,k\n1,1\nabc,2\n", r"v\s+text \(row 1: 'abc'\)"),
    "float for int": ("v,k\n1,1.5\n", r"(?s)k is float64.* not made int64 .*in pandas frame\.astype\({'k': 'Int64'}\)"),
    "empty value": ("v,k\n1,1\n,2\n", r"row 1, column 'v': no value"),
    "empty int": ("v,k\n1,1\n1,\n", r"row 1, column 'k': no value"),
    "empty": ("", "is empty"),
    "blank": ("\n\n", "is empty"),
    "no column": ("v,z\n1,2\n", "no column 'k'"),
    "twice": ("v,k,k\n1,2,3\n", "more than one column 'k'"),
    "too large": ("v,k\n1,99999999999999999999\n", "k is float64"),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_bad_csv(tmp_path: Path, case: str) -> None:
    text, said = BAD_CSV[case]
    path = put(tmp_path / "rows.csv", text)
    with pytest.raises(DataError, match=said):
        opened(path, [V, K]).read(0, 2)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_named(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "rows.csv").write_bytes("\ufeffv,k\n1,1\n".encode(encoding))
    with pytest.raises(DataError, match=r"rows\.csv: is UTF-16, expected UTF-8; .* iconv -f UTF-16 -t UTF-8 "):
        opened(tmp_path / "rows.csv", [V, K])


BAD_JSON = {
    "invalid": ('{"v":1,"k":1}\n{"v":\n', "row 1: not valid JSON"),
    "no object": ('{"v":1,"k":1}\n[1]\n', "row 1: a JSON list"),
    "missing field": ('{"v":1,"k":1}\n{"v":2}\n', "row 1, column 'k': no value"),
    "text": ('{"v":1,"k":1}\n{"v":"a","k":1}\n', r"v\s+text \(row 1: 'a'\)"),
    "float for int": ('{"v":1,"k":1.5}\n', "k is float64"),
    "object": ('{"v":{"a":1},"k":1}\n', "v is struct"),
    "list": ('{"v":[1],"k":1}\n', r"v is int64\[\]"),
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_bad_json_lines(tmp_path: Path, case: str) -> None:
    text, said = BAD_JSON[case]
    path = put(tmp_path / "rows.jsonl", text)
    with pytest.raises(DataError, match=said):
        opened(path, [V, K]).read(0, 2)


LATE = 30_000


@pytest.mark.parametrize(
    ("name", "good", "bad", "said"),
    [
        ("r.csv", "{0}.5,{0},longer text {0:050}\n", "abc,1,z\n", r"row 30000: column 'v': 'abc' is no float64"),
        ("r.csv", "{0}.5,{0},longer text {0:050}\n", "1,1.5,z\n", r"row 30000: column 'k': '1.5' is no int64"),
        ("r.csv", "{0}.5,{0},longer text {0:050}\n", "1,1\n", r"row 30000: 2 values"),
        ("r.csv", "{0}.5,{0},longer text {0:050}\n", "1,99999999999999999999,z\n", r"row 30000: column 'k'"),
        ("r.jsonl", '{{"v":{0},"k":{0},"t":"{0:050}"}}\n', '{"v":1,"k":2\n', "row 30000: not valid JSON"),
        (
            "r.jsonl",
            '{{"v":{0},"k":{0},"t":"{0:050}"}}\n',
            '{"v":"1","k":2}\n',
            "row 30000: field 'v': \"1\" is no float64",
        ),
        (
            "r.jsonl",
            '{{"v":{0},"k":{0},"t":"{0:050}"}}\n',
            '{"v":1,"k":2.5}\n',
            "row 30000: field 'k': 2.5 is no int64",
        ),
    ],
)
def test_what_is_wrong_far_behind_the_sample_names_its_row(
    tmp_path: Path, name: str, good: str, bad: str, said: str
) -> None:
    head = "v,k,t\n" if name == "r.csv" else ""
    text = head + "".join(good.format(row) for row in range(LATE)) + bad + good.format(1)
    source = opened(put(tmp_path / name, text), [V, K])
    assert len(source) == LATE + 2
    np.testing.assert_array_equal(source.read(2000, 2003)["k"], [2000, 2001, 2002])
    with pytest.raises(DataError, match=said):
        source.read(LATE - 1, LATE + 1)
    # The rows around it can be read, in any order.
    for row in (LATE - 1, LATE + 1, 0):
        assert source.read(row, row + 1)["k"].tolist() == [row if row < LATE else 1]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"v": 1, "v": 2, "k": "a"}', "specified twice"),
        ('{"v": 1, "k": "\\ud800"}', "surrogate pair"),
        ('{"v": 1e400, "k": "a"}', "too big"),
        ('{"v": 1, "k": "a"} {"v": 2, "k": "b"}', "not valid JSON"),
    ],
)
def test_what_the_parser_of_json_alone_refuses_is_an_error_of_its_row(tmp_path: Path, line: str, said: str) -> None:
    lines = [json.dumps({"v": row, "k": f"id {row}"}) for row in range(40)]
    path = put(tmp_path / "rows.jsonl", "\n".join([*lines[:17], line, *lines[17:]]) + "\n")
    source = opened(path, [V], keep=("k",))
    with pytest.raises(DataError, match=rf"row 17: .*{said}.*mend the line"):
        source.read(0, 41)
    assert source.read(0, 17)["v"].tolist() == list(range(17))
    assert source.read(18, 41)[f"{KEPT}k"].tolist() == [f"id {row}" for row in range(17, 40)]


def test_a_header_alone_is_no_row(tmp_path: Path) -> None:
    source = opened(put(tmp_path / "rows.csv", "x0,x1,x2,x3\n"))
    assert len(source) == 0
    assert source.read(0, 0)["x"].shape == (0, 4)


def test_tabs_in_tsv_and_a_source_named_before_the_place(tmp_path: Path) -> None:
    text = "a\tb\tc\td\n1\t2\t3\t4\n"
    assert opened(put(tmp_path / "rows.tsv", text)).read(0, 1)["x"].tolist() == [[1, 2, 3, 4]]
    path = put(tmp_path / "rows.txt", text.replace("\t", ","))
    with pytest.raises(DataError, match=r"unknown extension '\.txt'"):
        opened(path)
    assert opened(f"csv:{path}").read(0, 1)["x"].tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("rows.csv.gz", "unpack it first"),
        ("rows.json", "an object on each line, as .jsonl"),
        ("data.py", r"file\.py:FUNCTION"),
    ],
)
def test_what_to_do_with_files_that_are_not_read(tmp_path: Path, name: str, advice: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(DataError, match=rf"unknown extension .*{advice}$"):
        opened(tmp_path / name, [V])


@pytest.mark.parametrize("url", ["", "memory://predictions/"])
def test_a_run_directory_is_named_as_what_it_is(tmp_path: Path, url: str) -> None:
    place = url + str(tmp_path / "a run")
    filesystem, root = fsspec.core.url_to_fs(place)
    for name in ("run.json", "commits/part-000000.json", "parts/part-000000.npy", "report.html"):
        filesystem.makedirs(str(Path(root, name).parent), exist_ok=True)
        filesystem.pipe_file(f"{root}/{name}", b"{}")
    said = rf"^data {place}: is a run directory, which holds predictions; .*: deploykit merge '{place}' -o FILE"
    with pytest.raises(DataError, match=said):
        opened(place, [V])
    filesystem.rm_file(f"{root}/commits/part-000000.json")
    with pytest.raises(DataError, match=r"files of several kinds|of which one is read at a time"):
        opened(place, [V])


@pytest.mark.parametrize("other", ["rows.csv.bak", "rows.csv~", "rows", "README.md"])
def test_a_copy_beside_a_table_is_not_read_as_more_of_its_rows(tmp_path: Path, other: str) -> None:
    (tmp_path / "many").mkdir()
    for name in ("rows.csv", other):
        put(tmp_path / "many" / name, "v\n1\n2\n")
    with pytest.raises(DataError, match=r"files of several kinds \(.*csv.*\); name those of one with a pattern"):
        opened(tmp_path / "many", [V])
    with pytest.raises(DataError, match=r"such as '[^*']*many/\*\.csv'"):
        opened(tmp_path / "many" / "*", [V])
    assert len(opened(tmp_path / "many" / "*.csv", [V])) == 2
    # Whoever names the source means all files.
    assert len(opened(f"csv:{tmp_path}/many", [V])) == 4


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_rows_longer_than_what_decides_the_types(tmp_path: Path, name: str) -> None:
    """The first row is read as a whole, whatever its length."""
    wide = np.arange(3 * 2000, dtype=np.float32).reshape(3, -1)
    texts = [",".join(f"{value}.{'0' * 600}" for value in row) for row in wide.astype(int).tolist()]
    names = [f"{'f' * 600}{number}" for number in range(wide.shape[1])]
    assert min(map(len, [*texts, ",".join(names)])) > 2**20
    if name == "rows.csv":
        put(tmp_path / name, "\n".join([",".join(names), *texts]))
    else:
        put(tmp_path / name, "".join(f'{{"id": "a", "x": [{text}]}}\n' for text in texts))
    x = TensorSpec(name="x", dtype="float32", shape=("batch", wide.shape[1]))
    np.testing.assert_array_equal(opened(tmp_path / name, [x]).read(0, 3)["x"], wide)


def test_several_files_with_one_header(tmp_path: Path) -> None:
    for number in range(3):
        put(tmp_path / f"{number}.csv", f"a,b,c,d\n{number},1,2,3\n\n")
    source = opened(tmp_path)
    assert source.read(0, 3)["x"][:, 0].tolist() == [0, 1, 2]
    put(tmp_path / "3.csv", "a,b,d,c\n1,2,3,4\n")
    with pytest.raises(DataError, match=r"3\.csv: its header is"):
        opened(tmp_path)
    put(tmp_path / "x.jsonl", "{}\n")
    with pytest.raises(DataError, match="several kinds"):
        opened(tmp_path)


def test_kept_numbers_and_dates(tmp_path: Path) -> None:
    path = put(tmp_path / "r.csv", "v,k,day,ok,score\n1,5,2024-01-02,true,\n2,6,NA,false,1.5\n")
    source: Any = opened(path, [V], keep=("k", "day", "ok", "score"))
    assert [spec.dtype for spec in source.kept] == ["int64", "string", "bool", "float64"]
    got = source.read(0, 2)
    assert got[f"{KEPT}day"].tolist() == ["2024-01-02", "NA"]
    assert got[f"{KEPT}ok"].tolist() == [True, False]
    assert np.isnan(got[f"{KEPT}score"][0])
    assert got["v"].tolist() == [1, 2]
    assert X.name not in got


KEPT_TEXTS = st.one_of(
    st.integers(-(10**21), 10**21).map(str),
    st.integers(-1000, 1000).map(str),
    st.floats().map(repr),
    st.from_regex(r"[+-]?[0-9]{1,4}(\.[0-9]{0,3})?([eE][+-]?[0-9]{1,3})?", fullmatch=True, alphabet="+-.eE0123456789"),
    st.sampled_from(["01234", "-05", "+49", "1_000", "-0", "0x1F", "1e400", ".", "9007199254740993"]),
    st.sampled_from(["true", "FALSE", "NA", "", " 5", '"5\n"']),
    st.text("0123456789abxe+-_.", max_size=5),
)


def gives_back(text: str, value: Any) -> bool:
    text = text.strip('"')
    if text in NULLS:
        return value == text or value != value
    if isinstance(value, str):
        return value == text
    if isinstance(value, bool):
        return str(value).lower() == text.lower()
    if isinstance(value, int):
        return str(value) == text.strip(" ")
    if text.lstrip("-").isdecimal():
        return int(text) == value and (text == str(int(text)) or text == "-0")
    return value == float(text) or text.lower().lstrip("+-") == "nan"


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.one_of(st.lists(KEPT_TEXTS, min_size=1, max_size=6), st.lists(st.integers().map(str), min_size=1)))
@pytest.mark.parametrize("sample", [12, 2**20])
@pytest.mark.parametrize("twice", [False, True])
def test_a_kept_value_of_csv_is_what_was_written_or_an_error_of_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample: int, twice: bool, texts: list[str]
) -> None:
    monkeypatch.setattr("deploykit.sources.csvfile.SAMPLE_BYTES", sample)
    path = put(tmp_path / "rows.csv", "v,z\n" + "".join(f"1,{text}\n" for text in texts))
    columns = {"v": ("z",)} if twice else {}
    try:
        source: Any = opened(path, [V], keep=("z",), columns=columns, allow_nan=True)
    except DataError:
        assert twice
        return
    for row, text in enumerate(texts):
        try:
            got = source.read(row, row + 1)
        except DataError as error:
            assert f"row {row}" in str(error)  # noqa: PT017
            assert twice or source.kept[0].dtype != "string"
            continue
        assert gives_back(text, got[f"{KEPT}z"].tolist()[0]), (text, source.kept)
        if twice and text not in NULLS:
            np.testing.assert_array_equal(got["v"], [float(text)])
    helpers.close_opened()


@pytest.mark.parametrize(
    ("spec", "column", "bad"),
    [(V, "v", "1e400"), (V, "v", "-1e999"), (V, "v", "1" * 400), (K, "k", "0x1F"), (K, "k", "-0X1f")],
)
def test_what_pyarrow_takes_for_another_number_is_an_error_wherever_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: TensorSpec, column: str, bad: str
) -> None:
    """An infinite number that was not written, and a hexadecimal one: behind the sample, and in it."""
    monkeypatch.setattr("deploykit.sources.csvfile.SAMPLE_BYTES", 100)
    good = ["1", "-Infinity", "inf", "0.5"] if spec is V else ["1", "31", "-7", "031"]
    lines = ["v,k,note", *(f"{value},{value},0x1f" for value in good * 20)]
    path = put(tmp_path / "rows.csv", "\n".join([*lines, f"{bad},{bad},a", "2,2,b", ""]))
    source = opened(path, [spec], columns={spec.name: (column,)})
    np.testing.assert_array_equal(source.read(0, 80)[spec.name], [float(value) for value in good * 20])
    with pytest.raises(DataError, match=rf"row 80: column '{column}': '{bad[:60]}' is no {spec.dtype}; mend the value"):
        source.read(79, 82)
    assert source.read(81, 82)[spec.name] == [2]
    monkeypatch.undo()
    with pytest.raises(DataError, match="its columns do not give what is needed"):
        opened(put(tmp_path / "first.csv", f"v,k\n{bad},{bad}\n"), [spec])


def test_why_a_column_of_numbers_is_kept_as_text_is_said(tmp_path: Path) -> None:
    path = put(tmp_path / "rows.csv", "v,zip,phone,big,n\n1,1234,+49,18446744073709551615,1\n2,01234,5,1,2\n")
    source: Any = opened(path, [V], keep=("zip", "phone", "big", "n"))
    assert [spec.dtype for spec in source.kept] == ["string", "string", "string", "int64"]
    assert "the column 'zip' (int64, row 1: '01234') is kept as text" in source.notes
    got = source.read(0, 2)
    assert got[f"{KEPT}zip"].tolist() == ["1234", "01234"]
    assert got[f"{KEPT}big"].tolist() == ["18446744073709551615", "1"]
    k = TensorSpec(name="v", dtype="int64", shape=("batch",))
    assert opened(put(tmp_path / "k.csv", "v\n-0\n05\n"), [k]).read(0, 2)["v"].tolist() == [0, 5]
    # For an input they are numbers as ever.
    for name, wanted in (("zip", [1234, 1234]), ("phone", [49, 5]), ("big", [2.0**64, 1])):
        assert opened(path, [V], columns={"v": (name,)}).read(0, 2)["v"].tolist() == wanted


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (gzip.compress(b'v,k\n1,2\n{"v": 1}\n', mtime=0), "is no text, but packed with gzip: unpack it first"),
        (b"PAR1" + bytes(20), "is no text, but Parquet: give it that extension"),
        ('{"v": 1}\n'.encode("utf-16"), "is UTF-16, expected UTF-8.*iconv -f UTF-16"),
    ],
)
def test_what_is_no_text_is_not_taken_for_a_table_without_rows(
    tmp_path: Path, name: str, data: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=said):
        opened(tmp_path / name, [V])


def test_a_text_that_is_not_utf8_names_its_row_in_every_source(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"v,k\n1,a\n2,\xe9\n3,c\n")
    (tmp_path / "a.jsonl").write_bytes(b'{"v": 1, "k": "a"}\n{"v": 2, "k": "\xe9"}\n{"v": 3, "k": "c"}\n')
    texts = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"\xe9", b"c"]).buffers())
    pq.write_table(pa.table({"v": [1.0, 2.0, 3.0], "k": texts}), tmp_path / "a.parquet")
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        source = opened(tmp_path / name, [V], keep=("k",))
        with pytest.raises(DataError, match=r"row 1.* column 'k': a text that is not UTF-8; convert"):
            source.read(0, 3)
        assert source.read(2, 3)[f"{KEPT}k"].tolist() == ["c"]
        assert opened(tmp_path / name, [V]).read(0, 3)["v"].tolist() == [1, 2, 3]


def test_a_column_of_missing_values_is_kept_as_it_was_written(tmp_path: Path) -> None:
    """NA may be Namibia, or a name; an input takes it for a missing number as ever."""
    path = put(tmp_path / "rows.csv", "v,country,mixed,empty,nan\n1,NA,,,NaN\n2,NA,None,,nan\n")
    source: Any = opened(path, [V], keep=("country", "mixed", "empty", "nan"))
    assert [spec.dtype for spec in source.kept] == ["string", "string", "float64", "float64"]
    assert "the column 'country' (float64, row 0: 'NA') is kept as text" in source.notes
    got = source.read(0, 2)
    assert got[f"{KEPT}country"].tolist() == ["NA", "NA"]
    assert got[f"{KEPT}mixed"].tolist() == ["", "None"]
    assert np.isnan([got[f"{KEPT}{name}"] for name in ("empty", "nan")]).all()
    assert np.isnan(opened(path, [V], columns={"v": ("country",)}, allow_nan=True).read(0, 2)["v"]).all()


def test_a_bad_row_in_a_directory_names_the_file_with_the_directory(tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for name, value in (("a.csv", "1"), ("b.csv", "x")):
        put(tmp_path / "many" / name, f"v\n{value}\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1\n")
    with pytest.raises(DataError, match=rf"data {tmp_path}/many/b\.csv, row 11: column 'v'"):
        opened(tmp_path / "many", [V]).read(0, 22)


def test_the_beginning_of_a_csv_file_is_looked_at_once_for_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    beginning = csvfile._beginning
    monkeypatch.setattr(csvfile, "_beginning", lambda file: (looks.append(file.name), beginning(file))[1])
    opened(put(tmp_path / "rows.csv", "v;k\n1;2\n"), [V])
    assert len(looks) == 1


def test_a_late_value_that_a_kept_number_would_change_names_its_row(tmp_path: Path) -> None:
    lines = [f"{row},{row + 1},longer text {row:050}\n" for row in range(LATE)]
    path = put(tmp_path / "rows.csv", "".join(["v,zip,t\n", *lines, "1,01234,z\n", lines[0]]))
    source = opened(path, [V], keep=("zip",))
    with pytest.raises(DataError, match=r"row 30000: column 'zip': '01234' is not what int64 gives back.*as text"):
        source.read(LATE, LATE + 1)
    assert source.read(LATE + 1, LATE + 2)[f"{KEPT}zip"].tolist() == [1]


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("value", [2**53 + 1, 2**64 - 1, 10**400])
def test_a_kept_integer_of_json_is_not_rounded(tmp_path: Path, value: int, twice: bool) -> None:
    columns = {"v": ("z",)} if twice else {}
    for other, last in ((0.5, 2**60), (7, 2**60 + 1)):
        path = put(tmp_path / "rows.jsonl", "".join('{"v":1,"z":%s}\n' % each for each in (other, value, last)))  # noqa: UP031
        source = opened(path, [V], keep=("z",), columns=columns)
        if other == 7 and value < 2**63:
            assert source.read(0, 3)[f"{KEPT}z"].tolist() == [7, value, last]
            continue
        with pytest.raises(DataError, match=rf"row 1: field 'z': {str(value)[:60]}.*write the field as text"):
            source.read(0, 3)
        got = source.read(2, 3)
        assert got[f"{KEPT}z"].tolist() == [last]
        assert got["v"].tolist() == [float(last) if twice else 1]


def test_a_column_of_json_lists_says_why_it_cannot_be_kept(tmp_path: Path) -> None:
    path = put(tmp_path / "rows.jsonl", '{"v":1,"z":[1,2]}\n{"v":1,"z":[3,4]}\n')
    with pytest.raises(DataError, match="its type does not say how long the lists are"):
        opened(path, [V], keep=("z",))


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "many"])
def test_rows_are_told_while_they_are_counted(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploykit.sources.textindex.text_pieces.__kwdefaults__", {"block_bytes": 64, "told": None})
    place, told = tmp_path / name, list[int]()
    place.mkdir() if name == "many" else None
    for path in [place / "a.csv", place / "b.csv"] if name == "many" else [place]:
        put(path, "v\n" + "1\n" * 500 if path.suffix == ".csv" else '{"v": 1}\n' * 500)
    source = opened(place, [V], told=told.append)
    assert told == sorted(told)
    assert told[-1] == len(source) == (1000 if name == "many" else 500)
    assert len(told) > 10
    again = list[int]()
    opened(place, [V], told=again.append, index=source.index())  # type: ignore[attr-defined]
    assert again == []


@pytest.mark.parametrize("bad", ["1,2,,4", "1,2,3,4,5"])
def test_the_error_of_a_bad_row_has_its_number(tmp_path: Path, bad: str) -> None:
    """Whoever leaves such rows out need not look for it in its batch."""
    rows = ["1,2,3,4"] * 9
    rows[6] = bad
    (tmp_path / "rows.csv").write_text("\n".join(["x0,x1,x2,x3", *rows, ""]))
    with pytest.raises(DataError, match=r"rows\.csv, row 6") as caught:
        opened(tmp_path / "rows.csv", [X]).read(2, 9)
    assert caught.value.row == 6


def test_a_decimal_comma_is_named_where_the_columns_do_not_give_the_inputs(tmp_path: Path) -> None:
    path = put(tmp_path / "rows.csv", "a;b;c;d\n1,5;2;3;4\n")
    with pytest.raises(DataError, match=r"a number with a comma, '1,5', is text: write decimals with a point"):
        opened(path)
    with pytest.raises(DataError) as told:
        opened(put(tmp_path / "texts.csv", "a;b;c;d\nx,5;2;3;4\n"))
    assert "comma," not in str(told.value)
