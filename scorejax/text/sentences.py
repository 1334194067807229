# SPDX-License-Identifier: Apache-2.0
"""Splits text into sentences by rules: lines, marks of lists, and the ends of sentences."""

import re

_END = re.compile(r"[.!?…]+[\"'”’)\]]*\s+|[。！？；]+[”’」』）]*\s*")
"""Ends of sentences: before a space in Latin script, anywhere in Chinese and Japanese."""
_MARK = re.compile(r"^(?:[-*•·‣▪●○–—]+|\(?\d{1,2}[.)])\s+")
_TITLES = frozenset({"mr", "mrs", "ms", "dr", "prof", "st", "vs", "approx", "cf", "incl"})
_LETTERS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")
"""Initials and the like: "J", "U.S", "e.g"."""


def split(text: str) -> tuple[str, ...]:
    """The sentences of a text, with single spaces; none is empty.

    A line break ends a sentence, as in lists, whose marks ("-", "•", "1.") are dropped. A full stop
    does not end one after an initial or a title, nor before a small letter.
    """
    sentences = []
    for line in text.splitlines():
        line, start = _MARK.sub("", " ".join(line.split())), 0
        for end in _END.finditer(line):
            if not _goes_on(line[start : end.start()], end.group(), line[end.end() :]):
                sentences.append(line[start : end.end()].rstrip())
                start = end.end()
        sentences.append(line[start:])
    return tuple(filter(None, sentences))


def _goes_on(before: str, end: str, after: str) -> bool:
    """Whether a sentence goes on after the mark `end`."""
    if end[0] in "。！？；":
        return False
    word = before.rpartition(" ")[2].lstrip("(\"'“‘[").lower()
    abbreviated = word in _TITLES or _LETTERS.fullmatch(word) is not None
    return after[:1].islower() or (end.rstrip() == "." and abbreviated)
