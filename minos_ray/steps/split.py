"""From a model's text to steps: what a reader leaves out (thinking, and the next question that a base model goes on
with), and step splitters.

Servers without a reasoning parser leave thinking in the text; chat templates often open it in the prompt, so that the
text has its end alone; a text that was cut off has its beginning alone.

The last step is the line with the answer. And the first wrong step, with what the steps after it are worth. Labels are
1 (right), 0 (wrong) and -1 (unlabelled); error types are "" for a right step, and [] when nobody knows them.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, groupby
from typing import TypeGuard

# DeepSeek-R1, QwQ, Qwen3 and most others, with a prefix (Seed-OSS, MiniMax M3, LongCat) or a suffix; Magistral; Kimi;
# Command A; OpenThoughts; gpt-oss (harmony: the analysis channel); Gemma 4; Granite 3.2.
TAG = r"(?:\w+[:_])?(?:think|thinking|thought|thoughts|reasoning|scratchpad)(?::\w+)?"
THINK = (
    rf"<{TAG}>|\[THINK\]|\u25c1think\u25b7|<\|START_THINKING\|>|<\|begin_of_thought\|>"
    r"|<\|channel\|>analysis<\|message\|>|<\|channel>thought\b|^\s*here(?:'s| is) my thought process:"
)
THOUGHT = (
    rf"</{TAG}>|\[/THINK\]|\u25c1/think\u25b7|<\|END_THINKING\|>|<\|end_of_thought\|>"
    r"|(?:<\|end\|>)?(?:<\|start\|>assistant)?<\|channel\|>final<\|message\|>|<channel\|>|here(?:'s| is) my response:"
)
CLOSED = re.compile(f"(?:{THINK}).*?(?:{THOUGHT})", re.DOTALL | re.IGNORECASE)
FIRST_PART = re.compile(f"^.*(?:{THOUGHT})", re.DOTALL | re.IGNORECASE)
END = re.compile(THOUGHT, re.IGNORECASE)
CUT_OFF = re.compile(f"(?:{THINK}).*$", re.DOTALL | re.IGNORECASE)

# What some put around the answer behind their thinking: Command A, OpenThoughts, DeepSeek-R1's own prompt.
FRAMED = re.compile(
    r"\s*(?:<\|START_RESPONSE\|>|<\|begin_of_solution\|>|<answer>)(.*?)"
    r"(?:<\|END_RESPONSE\|>|<\|end_of_solution\|>|</answer>)?\s*",
    re.DOTALL | re.IGNORECASE,
)
# A new turn of a chat, whatever stands before it.
TURN = re.compile(
    r"<\|(?:user|im_start\|>\s*user|start_header_id\|>\s*user|start\|>\s*user)|<start_of_turn>\s*user|\[INST\]"
    r"|\n#{2,}\s*(?:Instruction|Human|User|(?P<question>Question|Problem|Input))s?\s*:"
)
# The next question of a few-shot prompt: these words begin solutions too, so a stated answer must stand before.
WORDS = r"(?:Question|Problem|Exercise|Q|User|Human|Instruction|Input|Example(?=[ \t]*[0-9])|Next (?:question|problem))"
NEXT_TURN = (
    rf"(?:[ \t>*_#]*{WORDS}[ \t]*[0-9]*[*_]*[ \t]*:|#+[ \t*_]*(?:Question|Problem|Exercise)[ \t]*[0-9]*[*_ \t]*\n)"
)
BEGINS = re.compile(r"\s*" + NEXT_TURN)
NEXT = re.compile(r"\n" + NEXT_TURN + r"(?!\s*$)")
# The end of a text, where the endpoint leaves it in.
ENDED = re.compile(r"<\|(?:endoftext|end_of_text)\|>|<\uff5cend\u2581of\u2581sentence\uff5c>|</s>|<eos>")
STATED = re.compile(
    r"\banswer\s*(?:\*+\s*)?(?:(?:is|are)\b[^\n]{0,60}?[0-9$\\]|(?:is|are)?\s*[:=][\s*]*\S)|####\s*\S"
    r"|\\f?boxed\s*\{?\s*[^\s{}]|^[ \t]*\**A[ \t]*:[ \t]*\S",
    re.IGNORECASE | re.MULTILINE,
)
GAP = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9$\\(])")
ABBREVIATION = re.compile(
    r"(?:Mrs?|Ms|Mx|Dr|Prof|Rev|Hon|Gen|Col|Lt|Sgt|Capt|Sen|Gov|Jr|Sr)\."
    r"|(?i:i\.?e|e\.?g|cf|vs|viz|resp|approx|incl|excl|w\.?r\.?t|a\.k\.a|wlog)\."
)
BEFORE_NUMBER = re.compile(
    r"(?:Nos?|Figs?|Eqs?|Eqn|Ex|Sec|Ch|Vol|Thm|Prop|Lem|Cor|pp?|ca?|max|min|avg"
    r"|Jan|Feb|Mar|Apr|Aug|Sept?|Oct|Nov|Dec|ft|in|yd|mi|lbs?|oz|hrs?|mins?|secs?|sq|cu|gal|qt|pt)\.",
    re.IGNORECASE,
)
# Ends of sentences only before a word with which sentences begin: `the U.S. Army`, `Elm St. The`, `J. K. Rowling`.
SHORTENED_NAME = re.compile(r"(?:St|Mt|Ave|Rd|Co|Inc|Ltd|Corp|Univ|(?:[A-Z]\.)+[A-Z])\.")
INITIAL = re.compile(r"[A-Z]\.")
STARTER = re.compile(
    r"[$\\(]|(?:The|Then|Th[iu]s|These|Those|That|They|Their|There|Therefore|So|Since|It|Its|If|He|His|She|Her|We|Our|I"
    r"|In|On|At|As|An?|And|But|By|For|From|To|Let|Now|Next|Hence|Because|Each|Every|All|Both|First|Second|Third|Finally"
    r"|Also|After|Before|When|What|Which|While|How|Given|Using|Note|Similarly|However|Adding|Answer|Step|Case)\b"
)
# A sentence that is only the number of an item: `1.`, `(2).`, `Step 3.`
NUMBERED = re.compile(r"(?:(?:Step|Case|Part)\s+)?\(?(?:[0-9]{1,3}|[A-Za-z])\)?\.", re.IGNORECASE)
MARKER = re.compile(r"(?m)^[^\S\n]*(?=Step\s+[0-9]+\s*[:.])")
ANSWER_LINE = re.compile(r"(?m)^[^\S\n]*(?=The answer is\b)")
# What stays in one piece, however many lines it has: code, displayed formulas, environments (align, cases, tabular),
# the drawings of MATH.
OPENING = re.compile(r"(?m)^[ \t]*(?P<fence>```|~~~)|\$\$|\\\[|\[asy\]|\\begin\{(?P<name>[A-Za-z]+\*?)\}")
CLOSING = {"$$": "$$", "\\[": "\\]", "[asy]": "[/asy]"}
DISPLAYED = re.compile(r"\$\$|\\\[|\[asy\]|\\begin\{|```|~~~")
BULLET = re.compile(r"[-*+\u2022]\s")
ROW = "|"
# More line breaks than so many for each empty line, and the empty lines are stray ones.
RARE = 2
# Where a step begins although no empty line stands before it: a numbered step, and the line with the answer.
HEAD = r"[#>*_\s]*"
BEGINNING = re.compile(rf"{HEAD}Step\s+[0-9]+\b", re.IGNORECASE)
ANSWER = re.compile(
    rf"####|{HEAD}(?:(?:so|thus|therefore|hence),?\s+)?(?:the\s+)?(?:final\s+)?answer\b(?:\s+is\b|[\s*]*:[\s*]*\S)",
    re.IGNORECASE,
)
INHERITED = "accumulation"


def without_thinking(text: str) -> str:
    """The text outside of the model's thinking; of one that was cut off while it thinks, what stood before.

    A text without thinking comes back unchanged.
    """
    # Most texts have no bracket of a tag at all, and looking for a character is far cheaper than the expressions.
    if "<" not in text and "[" not in text and "\u25b7" not in text and "my thought process" not in text:
        return text
    # Behind the last end nothing is closed: to look for that from each of many beginnings would take for ever.
    last = max((end.end() for end in END.finditer(text)), default=0)
    visible = CUT_OFF.sub("", FIRST_PART.sub("", CLOSED.sub("", text[:last]) + text[last:]))
    if visible == text:
        return text
    framed = FRAMED.fullmatch(visible)
    return (framed[1] if framed else visible).strip()


def own_solution(text: str) -> str:
    """What a reader of a model's text grades: not its thinking, and not the next question with its answer.

    The cut is at a new turn of a chat, and behind a stated answer at the end of a text or at a line that begins with
    `Question:`, `Q:`, `Problem:` or the like; a text that repeats or lists questions before it answers anything is not
    cut.
    """
    text = without_thinking(text)
    # A character is far cheaper to look for than the expression, and stands in few texts.
    if "<" in text or "[" in text or "##" in text:
        # A turn needs something before it. A heading such as `### Problem:` needs something of a solution, because a
        # model may begin with the question.
        begins = {
            words: next((m.start() for m in re.finditer(words, text)), len(text)) for words in (r"\S", r"[0-9$\\]")
        }
        turns = ((turn.start(), begins[r"[0-9$\\]" if turn["question"] else r"\S"]) for turn in TURN.finditer(text))
        text = next((text[:start] for start, begin in turns if begin < start), text)
        ended = ENDED.search(text)
        text = text[: ended.start()] if ended and STATED.search(text, 0, ended.start()) else text
    following = NEXT.search(text)
    if following is None or BEGINS.match(text) or STATED.search(text, 0, following.start()) is None:
        return text
    return text[: following.start()]


def paragraphs_or_lines(text: str) -> list[str]:
    """The steps as they were written: paragraphs, or lines where there is no or hardly an empty line between them.

    Displayed formulas, code and tables stay in one piece, and with the words before them; so does a list that a colon
    introduces. A line `Step k` begins a step, and so does a line with the answer.
    """
    # Lines between empty ones.
    runs = groupby(pieces(text), key=lambda line: bool(line.strip()))
    blocks = [grouped(block, belongs) for written, block in runs if written]
    divided = [grouped(block, goes_on) for block in blocks]
    breaks = sum(map(len, blocks)) - sum(map(len, divided))
    empty = sum(not ANSWER.match(block[0].lstrip()) for block in blocks) - 1
    texts = chain.from_iterable(divided if empty > 0 and breaks <= RARE * empty else blocks)
    return [step.strip() for step in grouped(texts, belongs)]


def pieces(text: str) -> list[str]:
    """The lines; one in which something begins that a later line ends goes on to there. Together they are the text."""
    wholes, boundaries = list(closings(text))[::-1], []
    start = end = 0
    for line in text.splitlines(keepends=True):
        end += len(line)
        while wholes and wholes[-1][1] <= end:
            wholes.pop()
        if not wholes or wholes[-1][0] >= end:
            boundaries.append(text[start:end])
            start = end
    return boundaries


def closings(text: str) -> Iterator[tuple[int, int]]:
    """Where each code block, displayed formula and environment begins and ends; what is never closed is none."""
    never: set[str] = set()
    position = 0
    while match := OPENING.search(text, position):
        closing = f"\n{match['fence']}" if match["fence"] else CLOSING.get(match[0], f"\\end{{{match['name']}}}")
        end = -1 if closing in never else text.find(closing, match.end())
        if end < 0:
            never.add(closing)
            position = match.end()
        else:
            position = end + len(closing)
            yield match.start(), position


def grouped(parts: Iterable[str], same: Callable[[str, list[str]], bool]) -> list[str]:
    """Parts put together where one is of the same group as those before it."""
    groups: list[list[str]] = []
    for part in parts:
        if groups and same(part, groups[-1]):
            groups[-1].append(part)
        else:
            groups.append([part])
    return ["".join(group) for group in groups]


def goes_on(line: str, paragraph: list[str]) -> bool:
    """Whether a line of a paragraph begins no step of its own."""
    return not (BEGINNING.match(line.lstrip()) or ANSWER.match(line.strip()))


def belongs(part: str, step: list[str]) -> bool:
    """Whether a part is a formula, a row or an item that belongs to the words before it."""
    words, before = part.strip(), step[-1].rstrip()
    last = before.rpartition("\n")[2].lstrip()
    if DISPLAYED.match(words):
        return before[-1] not in ".!?"
    if words.startswith(ROW):
        return before.endswith(":") or last.startswith(ROW)
    if BULLET.match(words):
        listed = (len(step) > 1 or "\n" in before) and BULLET.match(last)
        indents = [len(text) - len(text.lstrip()) for text in (step[0], part)]
        return before.endswith(":") or bool(listed) or indents[1] >= indents[0] + 2
    return False


def lines(text: str) -> list[str]:
    """Each non-empty line is a step."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def paragraphs(text: str) -> list[str]:
    """Each block between empty lines is a step; for solutions with displayed formulas."""
    return [block.strip() for block in re.split(r"\n\s*\n", text) if block.strip()]


def sentences(text: str) -> list[str]:
    """Each sentence of each line is a step; for solutions written as running text.

    No sentence ends behind an abbreviation, an initial or a number that stands before an item, nor inside of what goes
    over several lines (a displayed formula, code).
    """
    sentences = []
    for piece in filter(None, map(str.strip, pieces(text))):
        start = 0
        for gap in [] if "\n" in piece else GAP.finditer(piece):
            if is_end(piece[start : gap.start()], piece[gap.end() : gap.end() + 20]):
                sentences.append(piece[start : gap.start()])
                start = gap.end()
        sentences.append(piece[start:])
    return sentences


def is_end(before: str, after: str) -> bool:
    """Whether a sentence ends at a full stop, given what it says up to there and the first letters behind."""
    *earlier, word = before.rsplit(None, 2)[-2:]
    word = word.lstrip("(\"'$")
    if ABBREVIATION.fullmatch(word) or NUMBERED.fullmatch(before):
        return False
    if after.lstrip("(\\")[:1].isdigit():
        return not BEFORE_NUMBER.fullmatch(word)
    if STARTER.match(after):
        return True
    capitalised = not earlier or earlier[0][0].isupper()
    return not (SHORTENED_NAME.fullmatch(word) or (capitalised and INITIAL.fullmatch(word)))


def markers(text: str) -> list[str]:
    """Each `Step k:` up to the next one is a step, lines of one step joined; a line `The answer is` stands alone."""
    blocks = MARKER.split(text)
    parts = [part for block in blocks for part in ANSWER_LINE.split(block)]
    return [" ".join(part.split()) for part in parts if part.strip()]


def is_texts(value: object) -> TypeGuard[list[str]]:
    """Whether a value is a list of texts, as splitters give."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def first_error(labels: Sequence[int]) -> int | None:
    """Index of the first wrong step, None when none is wrong; unlabelled steps are passed over."""
    return next((step for step, label in enumerate(labels) if label == 0), None)


def after_first_error(labels: Sequence[int], errors: Sequence[str], policy: str) -> tuple[list[int], list[str]]:
    """Labels and error types under a policy for the steps after the first wrong one; up to it nothing changes.

    `keep`: what the source says (Math-Shepherd and the paper). `mask`: unlabelled (PRM800K, Qwen2.5-Math-PRM).
    `inherited`: wrong, of the type `accumulation`.
    """
    first = first_error(labels)
    if policy == "keep" or first is None:
        return list(labels), list(errors)
    label, error = {"mask": (-1, ""), "inherited": (0, INHERITED)}[policy]
    following = len(labels) - first - 1
    return [*labels[: first + 1], *[label] * following], [*errors[: first + 1], *[error] * following] if errors else []
