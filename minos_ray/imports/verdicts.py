"""The final verdict of a GenRM critique, which was asked to end in `Verification: Is the answer correct (Yes/No)? X`.

Most do so, in bold, over two lines or in other words; about one in thirty was cut off before its verdict.
"""

import re
from dataclasses import dataclass
from typing import Literal

How = Literal["stated", "implied", "cut off", "no verdict"]

TAGS = re.compile(r"</?(?:b|i|u|em|strong|p)>")
CHOICE = r"\(?\s*(?:yes|no)\s*/\s*(?:yes|no)\s*\)?"
WORD = r"(?P<verdict>yes|no|correct|incorrect|right|wrong)\b(?![ \t]*[/(?])"
GOOD = {"yes", "correct", "right"}

# An open bracket before the word is the choice, cut off: `correct (Yes`.
GAP = r"(?:[^\w(]*|\W*\((?=\w+\)))"
ASKED = rf"\bis the (?:final |given )?(?:answer|solution) correct\b[^\w(]*(?:{CHOICE})?"
QUESTION = rf"{ASKED}(?:\W*\b(?:answer|verification)\b)?{GAP}{WORD}"
# `Grade: Yes` is said of steps, too; `Grade: Verification: Yes` of the whole.
NAMED = r"\b(?:final (?:grade|verdict|verification)|(?:overall|grad(?:e|ing)|verdict)\W*(?=verification\b))"
HEADING = rf"{NAMED}\W*(?:verification\W*)?(?:correct\W*{CHOICE}\W*)?{WORD}"
# `(Yes/Yes)` where the choice was asked for: both say the same.
TWICE = (
    rf"(?:{NAMED}\W*(?:verification\W*)?|\bis the (?:final |given )?answer correct\W*)"
    r"\(?(?P<verdict>yes|no)/(?P=verdict)\b"
)
STATED = [re.compile(form, re.IGNORECASE) for form in (QUESTION, HEADING, TWICE)]
CLOSING = re.compile(
    r"(?:(?:final grade|conclusion|overall|therefore|verification)\W*)*"
    rf"(?:the|this) (?:solution|answer) (?:provided |given |in the solution )?is (?P<not>not )?{WORD}",
    re.IGNORECASE,
)
# A verdict on the answer line at the end, perhaps with the heading of another one that was cut off.
ANSWER_LINE = re.compile(
    rf"\bthe final answer is (?P<not>not )?{WORD}[^\n]*(?:\n\W*(?:final grade\W*)?(?:verification\W*)?)?\Z",
    re.IGNORECASE,
)
STEP_WRONG = re.compile(
    r"\((?:incorrect|no|wrong)\)|\b(?:verification|grade|result|comment):\W*(?:no\b|incorrect|wrong)"
    r"|\bstep (?:[0-9]+ )?is (?:incorrect|wrong)|- (?:incorrect|wrong)\b",
    re.IGNORECASE,
)
LAST_WORDS = re.compile(rf"(?:\bfinal grade\W*)?(?:\bverification\W*)?{QUESTION}[ \t*.)]*", re.IGNORECASE)
EMPTY_HEADING = re.compile(r"\W*(?:(?:final grade|final|grade|verification|conclusion)\W*)*", re.IGNORECASE)
TAIL = 600
ENDINGS = {".", "!", ")", '"'}


@dataclass(frozen=True)
class Verdict:
    """Whether the critique calls the solution right, and how that is known; None where it is not.

    `implied`: there is no final verdict, but a step is called wrong.
    """

    right: bool | None
    how: How


def read_verdict(critique: str) -> Verdict:
    """The final verdict of one critique; the last one counts."""
    text = plain(critique)
    for form in STATED:
        match = last(form, text[-TAIL:]) or last(form, text)
        if match:
            return Verdict(match["verdict"].lower() in GOOD, "stated")
    closing = CLOSING.match(text.strip().rpartition("\n\n")[2]) or ANSWER_LINE.search(text[-TAIL:])
    if closing:
        return Verdict((closing["verdict"].lower() in GOOD) != bool(closing["not"]), "stated")
    if STEP_WRONG.search(text):
        return Verdict(False, "implied")
    return Verdict(None, "no verdict" if text.rstrip()[-1:] in ENDINGS else "cut off")


def plain(text: str) -> str:
    """The text without bold type and headings; single stars stay, they multiply."""
    text = text.replace("**", "").replace("##", "").replace("`", "")
    return TAGS.sub("", text) if "<" in text else text


def last(form: re.Pattern[str], text: str) -> re.Match[str] | None:
    """The last match in a text."""
    latest = None
    for match in form.finditer(text):
        latest = match
    return latest


def training_text(critique: str, verdict: Verdict) -> str:
    """The critique, bold type undone, with its last words replaced by `The final answer is True.` or `False.`.

    A line that was cut off is left out; a critique without verdict is returned as it is.
    """
    if verdict.right is None:
        return critique.strip()
    text = plain(critique)
    lines = (text[:-TAIL] + LAST_WORDS.sub("", text[-TAIL:])).rstrip().split("\n")
    if verdict.how == "implied" and lines[-1].rstrip()[-1:] not in ENDINGS:
        lines.pop()
    while lines and EMPTY_HEADING.fullmatch(lines[-1]):
        lines.pop()
    written = [line.rstrip() for line in lines if line.strip()]
    return "\n".join([*written, f"The final answer is {verdict.right}."])
