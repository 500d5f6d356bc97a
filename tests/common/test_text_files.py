import pytest

from common.errors import DataError
from common.text_files import read_lines, read_text


def write(folder, data):
    path = folder / "notes.tsv"
    path.write_bytes(data)
    return path


def test_lines_end_at_line_feeds_only(tmp_path):
    text = "a\u2028b\x0bc\x85d\r\ne\rf\n\ng"
    assert list(read_lines(write(tmp_path, text.encode()))) == [
        (1, "a\u2028b\x0bc\x85d"),
        (2, "e\rf"),
        (3, ""),
        (4, "g"),
    ]


def test_a_utf8_mark_is_dropped_from_lines_but_kept_in_text(tmp_path):
    path = write(tmp_path, b"\xef\xbb\xbfa\r\nb")
    assert list(read_lines(path)) == [(1, "a"), (2, "b")]
    assert read_text(path) == "\ufeffa\r\nb"


@pytest.mark.parametrize("read", [lambda path: list(read_lines(path)), read_text])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty; leave the file out"),
        (b"one\ncaf\xe9\n", r"notes.tsv, line 2: byte 0xE9 at offset 7 is not UTF-8. Convert the file"),
        (b"caf\xc3\xa9\nab\nna\xefve\n", "line 3: byte 0xEF at offset 11 .* the file mixes encodings"),
        (b"\xc3\xa9 caf\xe9\n", "line 1: byte 0xE9 at offset 6 .* mixes encodings"),
        ("a".encode("utf-16"), "is UTF-16; records must be UTF-8"),
        (b"\xef\xbb\xbf\xff", "line 1: byte 0xFF at offset 3"),
    ],
)
def test_unusable_bytes_are_named(tmp_path, read, data, message):
    with pytest.raises(DataError, match=message):
        read(write(tmp_path, data))


@pytest.mark.parametrize("read", [lambda path: list(read_lines(path)), read_text])
def test_a_file_that_cannot_be_opened_is_named(tmp_path, read):
    with pytest.raises(DataError, match=r"gone: cannot be read"):
        read(tmp_path / "gone")
