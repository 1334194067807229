# SPDX-License-Identifier: Apache-2.0
"""Texts are split at the ends of sentences and nowhere else, and lose no character."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorejax.text.sentences import split

CASES = {
    "Builds APIs. Tests them!  Does it scale? Yes…": (
        "Builds APIs.", "Tests them!", "Does it scale?", "Yes…",
    ),
    "Skills:\n• Python, C++\n- Node.js 3.5\n 2) SQL\n\n1. Git": (
        "Skills:", "Python, C++", "Node.js 3.5", "SQL", "Git",
    ),
    "Reports to Dr. Who, e.g. Monday. J. Smith left the U.S. Army.": (
        "Reports to Dr. Who, e.g. Monday.", "J. Smith left the U.S. Army.",
    ),
    "Works at Yahoo! and likes it. “Good.” She said so.": (
        "Works at Yahoo! and likes it.", "“Good.”", "She said so.",
    ),
    "负责平台开发。熟悉java！要求：五年经验；英语好": (
        "负责平台开发。", "熟悉java！", "要求：五年经验；", "英语好",
    ),
    "Joined in 2020. Left in 2021.": ("Joined in 2020.", "Left in 2021."),
    " \n\t\r\n": (),
    "": (),
    "one": ("one",),
}  # fmt: skip


@pytest.mark.parametrize("text", CASES)
def test_sentences_of_a_text(text):
    assert split(text) == CASES[text]


@given(st.text(st.sampled_from("aB. !?\n\r\t。；'\"”(é1-•\u2028\x0b"), max_size=60))
def test_no_character_is_lost_but_spaces_and_marks_of_lists(text):
    sentences = split(text)
    assert all(s == " ".join(s.split()) and s for s in sentences)
    dropped = dict.fromkeys(map(ord, "-•.)(1"))
    squeeze = lambda text: "".join(text.split()).translate(dropped)
    assert squeeze("".join(sentences)) == squeeze(text)
