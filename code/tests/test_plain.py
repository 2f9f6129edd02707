"""Plain values from files: one sentence for each that is of another type, too much, or endless."""

import json
from typing import Annotated

import pytest
from pydantic import Field
from typing_extensions import TypedDict

from runtime.errors import UserError
from runtime.plain import check_extent, checked, read_json, short


class Inner(TypedDict):
    depth: Annotated[int, Field(le=100)]


class Wanted(TypedDict):
    name: str
    model: Inner


def test_checked_keeps_what_is_right_and_more():
    value = {"name": "x", "model": {"depth": 3}, "more": 1.5}
    assert checked(Wanted, value, "file") == value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"name": "x", "model": {"depth": "3"}}, r"^file: model.depth is '3', expected a valid integer; mend it$"),
        ({"name": "x", "model": {"depth": True}}, "model.depth is True, expected a valid integer"),
        ({"name": "x"}, "lacks model; found 'name'"),
        ({"name": "x", "modle": {"depth": 3}}, "lacks model; is 'modle' meant for it"),
        ([1], r"the whole is \[1\], expected a valid dictionary"),
        ({"name": "x", "model": {"depth": 10**5000}}, "an integer of 16610 bits"),
    ],
)
def test_checked_says_which_value_is_wrong(value, message):
    with pytest.raises(UserError, match=message):
        checked(Wanted, value, "file", "mend it")


def test_extent_lets_honest_files_pass_and_refuses_bombs():
    shared = ["a"] * 5
    check_extent({"dataset": [{"eeg": 1.0, "names": shared}] * 3}, 100, "file")
    bomb = [1]
    for _ in range(40):
        bomb = [bomb, bomb]
    with pytest.raises(UserError, match="written out, far more than its 500 bytes"):
        check_extent({"labels": bomb}, 500, "file")
    circle: list = []
    circle.append({"a": circle})
    with pytest.raises(UserError, match="contains itself"):
        check_extent(circle, 500, "file")
    with pytest.raises(UserError, match="an integer of 16610 bits"):
        check_extent([{"onset": 10**5000}], 10_000, "file")
    deep: list = []
    for _ in range(100_000):  # no recursion, so no limit of depth
        deep = [deep]
    check_extent(deep, 100_000, "file")


def test_short_is_a_line():
    assert len(short(["x" * 1000] * 1000)) < 400


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe{}", b"[" * 100_000, b'{"a": "\\ud800"}', b""])
def test_damaged_json_is_one_sentence(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match="a.json: cannot be read as a manifest"):
        read_json(tmp_path / "a.json", "manifest")


def test_json_that_is_no_file(tmp_path):
    with pytest.raises(UserError, match="no such file; expected a manifest"):
        read_json(tmp_path / "b.json", "manifest")
    (tmp_path / "c.json").mkdir()
    with pytest.raises(UserError, match="is no plain file; expected a manifest"):
        read_json(tmp_path / "c.json", "manifest")
    (tmp_path / "d.json").write_text(json.dumps({"a": [1]}))
    assert read_json(tmp_path / "d.json", "manifest") == {"a": [1]}
