"""Files of JSON lines: every mistake has its file and line, every text survives."""

import gzip

import pytest

from common.cli import InputError
from common.files import read_jsonl, read_responses, write_jsonl


@pytest.mark.parametrize("content, named", [
    ('{"a": 1}\n{"a": \n', "line 2: not valid JSON"),
    ('{"a": 1}\n\n{"a": "\\ud800"}\n', "line 3: not valid JSON"),  # half a surrogate pair
    ("[" * 100_000 + "\n", "line 1: not valid JSON"),
    ("[1]\n", "line 1: expected a JSON object, found a list"),
    ('{"b": 1}\n', "line 1: has no 'a'; it has b"),
])
def test_a_mistake_has_its_file_and_line(content, named, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(content)
    with pytest.raises(InputError) as error:
        read_jsonl(path, required=("a",))
    assert str(error.value).startswith(f"{path}, {named}")
    assert "\n" not in str(error.value)


def test_a_complaint_has_its_file_and_line(tmp_path):
    path = tmp_path / "p.jsonl"
    write_jsonl(path, [{"a": 1}, {"a": 2}])
    with pytest.raises(InputError) as error:
        read_jsonl(path, ("a",), lambda row: "is two" if row["a"] == 2 else None)
    assert str(error.value) == f"{path}, line 2: is two"


def test_a_file_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="p.jsonl: cannot be read as UTF-8"):
        read_jsonl(path)


def test_a_broken_gzip_file_is_named(tmp_path):
    path = tmp_path / "p.jsonl.gz"
    whole = gzip.compress(b'{"a": 1}\n' * 1000)
    for content in (b"\x1f\x8b\x08\x00 not gzip", whole[:-20], b"no gzip at all"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="p.jsonl.gz: cannot be read"):
            read_jsonl(path)
    path.write_bytes(whole)
    assert read_jsonl(path) == [{"a": 1}] * 1000


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(InputError, match="absent: no such file"):
        read_jsonl(tmp_path / "absent")


def test_text_with_odd_line_breaks_survives_a_round_trip(tmp_path):
    rows = [{"text": "a\u2028b\x0bc\r\nd\x85"}, {"text": "é ∀ 😀"}]
    write_jsonl(tmp_path / "x.jsonl", rows)
    assert read_jsonl(tmp_path / "x.jsonl") == rows


@pytest.mark.parametrize("line, named", [
    ('{"id": 1}', "line 1: has no 'responses'"),
    ('{"responses": []}', "line 1: `responses` must be a list of k texts"),
    ('{"responses": ["a", 1]}', "line 1: `responses` must be a list of k texts"),
    ('{"responses": ["a"], "id": [1]}', "line 1: `id`"),
    ('{"responses": ["a"], "ended": [true, true]}', "line 1: `ended`"),
    ('{"responses": ["a"], "ended": [1]}', "line 1: `ended`"),
    ('{"responses": ["a"], "greedy": ["a"]}', "line 1: `greedy`"),
    ("", "holds no problem"),
])
def test_a_line_that_holds_no_responses_is_refused(line, named, tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(InputError) as error:
        read_responses(path)
    assert str(path) in str(error.value) and named in str(error.value)


def test_responses_without_an_id_get_their_number(tmp_path):
    path = tmp_path / "r.jsonl"
    write_jsonl(path, [{"responses": ["a"]}, {"id": "mine", "responses": ["b"]}])
    assert [row["id"] for row in read_responses(path)] == ["0", "mine"]
