"""Where a long text can be cut without a change of its token ids."""

import re

from gptscale.data.texts import Bytes

_BEFORE_WORD = re.compile(rb"[A-Za-z0-9](?= [A-Za-z])")


def cuts_before_words(content: Bytes, every: int) -> list[int]:
    r"""Places, about `every` bytes apart, before a space between an ASCII letter or digit and an ASCII letter.

    No match of GPT-2's pattern (bpe.GPT2_PATTERN) crosses one: a match has a space at its start, or is nothing
    but space, so none holds the letter or digit and then the space. Nor does the text behind change a match before it:
    what is looked ahead at (`$`, `(?!\S)`) follows a run of spaces, and the last character before the cut is none.
    """
    places: list[int] = []
    at = every
    while found := _BEFORE_WORD.search(content.data, at):
        places.append(found.end())
        at = found.end() + every
    return places
