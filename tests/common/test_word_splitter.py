import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.word_splitter import WordSplitter


def words(text):
    return [text[start:end] for start, end in WordSplitter().split(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Gly23-->Val, 3.5mg", ["Gly23", "-", "-", ">", "Val", ",", "3", ".", "5mg"]),
        ("décès de\u0301ce\u0300s", ["décès", "de\u0301ce\u0300s"]),
        ("हिन्दी", ["हिन्दी"]),
        ("患者有2型糖尿病。", ["患", "者", "有", "2", "型", "糖", "尿", "病", "。"]),
        ("กำลัง", ["ก", "ำ", "ลั", "ง"]),
        ("당뇨병은 심한", ["당뇨병은", "심한"]),
        ("👩🏽\u200d⚕️🇪🇸1️⃣❤️ok", ["👩🏽\u200d⚕️", "🇪🇸", "1️⃣", "❤️", "ok"]),
        ("a\u00adb\u200bc\ufeffd", ["a\u00adb", "c", "d"]),
        ("\x00a\x07 \u3000\u2028\u200d", ["a"]),
        ("m² 10³ ½ ©2020", ["m²", "10³", "½", "©", "2020"]),
        ("\u0301 e", ["\u0301", "e"]),
        (" \n\t", []),
    ],
)
def test_words_of_many_scripts(text, expected):
    assert words(text) == expected


@given(st.text())
def test_words_are_in_order_disjoint_and_cover_what_is_visible(text):
    covered, previous = set(), 0
    for start, end in WordSplitter().split(text):
        assert previous <= start < end
        covered.update(range(start, end))
        previous = end
    # Letters and digits are never lost.
    assert all(index in covered for index, character in enumerate(text) if character.isalnum())


@pytest.mark.parametrize("unit", ["a", "a\u0301", "\u0301", "\u200d", "a\u200d", "😀\u200d", "word ", "患"])
def test_the_time_is_linear(unit):
    started = time.process_time()
    WordSplitter().split("a" + unit * 100_000)
    assert time.process_time() - started < 5
