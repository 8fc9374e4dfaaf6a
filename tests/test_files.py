"""Files that are there whole or not at all, and the shapes in weight files."""

from pathlib import Path

import numpy as np
import pytest

from lora_drift.harness.minihub.weights import head, parse_head, write_safetensors
from lora_drift.pipelines.files import lines_of, tensor_shapes, whole


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    with whole(path) as part:
        part.write_text("new")
        assert part.suffix == ".png" and not path.exists()
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_after_an_error_the_old_file_stays_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), whole(path) as part:
        part.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_two_writers_do_not_write_into_each_others_file(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with whole(path) as first, whole(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_head_of_a_weight_file_is_read_as_it_was_written(tmp_path: Path, dtype: str) -> None:
    tensors = {"b": np.ones((2, 3), np.float32), "a": np.zeros(4, np.float32)}
    write_safetensors(tmp_path / "x.safetensors", tensors, dtype)
    assert tensor_shapes(tmp_path / "x.safetensors") == {"a": [4], "b": [2, 3]}
    data = (tmp_path / "x.safetensors").read_bytes()
    header, start = parse_head(data)
    assert header.pop("__metadata__") == {"format": "pt"}
    sizes = {name: (t["dtype"], t["shape"], t["data_offsets"][1] - t["data_offsets"][0]) for name, t in header.items()}
    again, places = head(sizes)
    assert data[:start] == again and places["a"] == start


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for text, lines in (
        ("", []),
        ("\n", [""]),
        ("a", ["a"]),
        ("a\u2028b\u0085cd\n\né\n", ["a\u2028b\u0085cd", "", "é"]),
    ):
        path.write_bytes(text.encode())
        assert lines_of(path) == lines
