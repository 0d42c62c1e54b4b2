"""The parts of an answer: elements of a list, sides of an equation, and what a sentence or a calculation ends in."""

import re
from fractions import Fraction

from minos_ray.grading.forms import FONT, NO_UNITS, bare
from minos_ray.grading.numbers import canonical

OPENING, CLOSING = "([{", ")]}"
BRACKETS = re.compile(r"\\[{}]|\\[lr](?:brace|brack|angle|floor|ceil|vert)\b|[()\[\]{}]")
OPENS = re.compile(r"[(\[{]|\\\{|\\l(?:brace|brack|angle|floor|ceil)\b")
SEPARATOR = re.compile(
    r"[,;]\s*(?:\\text\s*\{\s*(?:and|or)\s*\}|(?:and|or)\b)?|\\text\s*\{\s*,?\s*(?:and|or)\s*\}|\b(?:and|or)\b|\\(?:lor|land)\b"
)
EQUALS = re.compile(r"(?<![<>!:\\=])=(?!=)")
EQUALS_OR_IN = re.compile(r"(?<![<>!:\\=])=(?!=)|\\in(?![a-zA-Z])")
RELATION = re.compile(
    r"[<>]|\\(?:le|leq|ge|geq|ne|neq|lt|gt|leqslant|geqslant|in|equiv|approx|mid|subset|subseteq)(?![a-zA-Z])"
)
NAME = re.compile(
    r"\\?[a-zA-Z]+'*(?:_(?:\{[^{}]*\}|\\?[a-zA-Z0-9]+))?'*(?:\s*\([^()=]*\)|\s*\[[^\[\]=]*\])?"
    r"|\\math(?:bb|cal|rm|bf)\s*\{?\s*[A-Z]\s*\}?(?:_\{?\w\}?)?\s*(?:\\?[(\[{][^=]*[)\]}])?"
    r"|\((?:\s*[a-zA-Z](?:_\{?\w+\}?)?\s*,?)+\)|\|[^|=]{1,20}\||\\(?:angle|triangle|overline|widehat)\s*\{?[\sA-Z_{}0-9]+\}?"
    r"|(?:\\text\s*\{[^{}]*\}|\s)*"
)
LETTER = re.compile(r"[a-zA-Z]")

ALIGNED = re.compile(
    r"\\(?:begin|end)\s*\{(?:aligned|align|gathered|gather|split|array|equation|multline)\*?\}(?:\s*\{[lcr|]*\})?"
)
IMPLIES = re.compile(
    r"\\(?:Rightarrow|Longrightarrow|implies|Leftrightarrow|Longleftrightarrow|iff|therefore)(?![a-zA-Z])"
)
SENTENCE_END = re.compile(r"(?<!i\.e)(?<!e\.g)[.](?=\s|\\ |$)|\\\\(?:\s*\[[^\]]*\])?|\n\s*\n|;")
TEXTS = re.compile(FONT + r"\s*\{([^{}]*)\}")
PROSE = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}\s+[a-zA-Z]{2,}|\\text\s*\{[^{}]*[a-zA-Z]{2,}[^{}]*\}\s*\S")
CONDITIONAL = re.compile(
    r"\b(?:if|when|unless|for|where|or|not|than|except|least|most|between|either|neither|without|no|none|cannot)\b"
)
WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}")
CONDITION = re.compile(
    r"(?:[\s,~]|\\[,;:! ]|\\q?quad\b|\()*(?:\\(?:text|mbox|mathrm)\s*\{\s*\(?\s*)?"
    r"\b(?:where|with|for (?:all|any|every|each|some)|as (?:required|desired|needed|wanted|expected|claimed|stated)"
    r"|since|because|so|which|hence|thus|when)\b.*"
    r"|[\s,;]+\(?[a-z](?:\s*,\s*[a-z])*\s*\\in\s*\\mathbb\s*\{?\s*[NZ].*|\s*\(?\\(?:pmod|bmod|mod)\b.*",
    re.DOTALL,
)
IS = re.compile(r"(?<![\\a-zA-Z])(?:is|are|equals|gives|giving|probability)(?![a-zA-Z])")
ASIDE = re.compile(r"\((?:i\.e\.|that is|which is|or|about)[^()]*\)$")
NEGATED = re.compile(r"\b(?:no|none|never|cannot|if|unless)\b")
HEDGE = re.compile(r"\bat (?:least|most)\b|\b(?:more|less|fewer|greater|smaller) than\b|\bor (?:more|less|fewer)\b")
COUNT = re.compile(
    rf"(-?[0-9][0-9.,]*(?:/[0-9]+)?)(?:\s+(?!(?:{NO_UNITS})\b)[a-zA-Z]{{2,}}[.'/-]?)+(?:\s*\([a-zA-Z.\s]*\))?"
)
LARGE_NUMBERS = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
LARGE = re.compile(rf"(-?[0-9]{{1,20}}(?:\.[0-9]{{1,20}})?)\s*({'|'.join(LARGE_NUMBERS)})(?:\s+[a-z]+)?")
APPROXIMATES = re.compile(r"\\(?:approx|doteq|simeq)(?![a-zA-Z])")


def split(text: str, separator: re.Pattern[str]) -> list[str]:
    """The text cut at separators outside of all brackets; in one piece where the brackets do not match."""
    if separator.search(text) is None:
        return [text]
    depth, start, parts = 0, 0, []
    marks = [(m.start(), m.end(), None) for m in separator.finditer(text)]
    brackets = [(m.start(), m.end(), 1 if OPENS.fullmatch(m[0]) else -1) for m in BRACKETS.finditer(text)]
    for begin, end, step in sorted(marks + brackets):
        if step is not None:
            depth += step
            if depth < 0:
                return [text]
        elif depth == 0:
            parts.append(text[start:begin])
            start = end
    return [text] if depth else [*parts, text[start:]]


def elements(answer: str) -> tuple[str, list[str]]:
    """The brackets around a list (`()`, `[)`, `{}`, or none) and its elements; one element for what is no list."""
    text = answer.strip()
    inside, brackets = text, ""
    if text.startswith(("(", "[")) and text.endswith((")", "]")) and closes_at_the_end(text):
        inside, brackets = text[1:-1], text[0] + text[-1]
    elif text.startswith("\\{") and text.endswith("\\}") and closes_at_the_end(text):
        inside, brackets = text[2:-2], "{}"
    elif text.startswith("\\langle") and text.endswith("\\rangle") and closes_at_the_end(text):
        inside, brackets = text[7:-7], "()"
    elif text.startswith("{") and text.endswith("}") and closes_at_the_end(text):
        inside, brackets = text[1:-1], "{}"
    parts = [bare(part) for part in split(inside, SEPARATOR)]
    return brackets, [part for part in parts if part]


def closes_at_the_end(text: str) -> bool:
    """Whether the bracket that begins the text is closed by the one that ends it."""
    depth = 0
    for bracket in BRACKETS.finditer(text):
        depth += 1 if OPENS.fullmatch(bracket[0]) else -1
        if depth <= 0:
            return depth == 0 and bracket.end() == len(text)
    return False


def sides(answer: str, membership: bool = False) -> list[str]:
    """The sides of an equation or of a chain of them; with `membership` also of `x \\in A`. A list has but one."""
    if len(split(answer, SEPARATOR)) > 1:
        return [answer.strip()]
    return [part.strip() for part in split(answer, EQUALS_OR_IN if membership else EQUALS)]


def is_name(text: str) -> bool:
    """Whether a left side only names what the right one is: `x`, `k_{\\max}`, `f(x)`, `\\mathbb{E}[X]`."""
    return NAME.fullmatch(text.strip()) is not None


def value_side(answer: str) -> str:
    """What an equation says of its unknown: its last side, or the first where the last is a mere name (`3 = x`)."""
    parts = sides(answer)
    if len(parts) == 1:
        return sides(answer, membership=True)[-1]
    parts[-1] = sides(parts[-1], membership=True)[0]  # t = 3 \in (0, 5)
    if is_name(parts[-1]) and LETTER.match(parts[-1]) and not is_name(parts[0]):
        return parts[0]
    return parts[-1]


def without_condition(answer: str) -> str:
    """The answer without a remark behind it: `12, as required`, `2k, where k is an integer`."""
    match = CONDITION.search(answer)
    return bare(answer[: match.start()]) if match and match.start() else answer


def counted_out(answer: str) -> str | None:
    """The number of an answer that is one with words behind it, `12 apples (one dozen)`; None for anything else."""
    text = ASIDE.sub("", bare(TEXTS.sub(r" \1 ", answer)))
    match = COUNT.fullmatch(bare(text))
    return match[1] if match and CONDITIONAL.search(text) is None else None


def in_full(answer: str) -> str | None:
    """`2500000` for `2.5 million`; None for anything else."""
    match = LARGE.fullmatch(bare(TEXTS.sub(r" \1 ", answer)))
    return canonical(Fraction(match[1]) * LARGE_NUMBERS[match[2]]) if match else None


def conclusion(answer: str) -> str | None:
    """What a sentence, a chain of implications or a calculation over lines ends in; None for anything else, and for one
    that ends in a condition."""
    lines = ALIGNED.sub(" ", answer).replace("&", " ")
    if lines == answer and not IMPLIES.search(answer) and not PROSE.search(answer):
        return None
    text = TEXTS.sub(r" \1 ", lines)
    sentence = next((part for part in reversed(SENTENCE_END.split(text)) if bare(part)), "")
    sentence = bare(IMPLIES.split(sentence)[-1])
    if CONDITIONAL.search(sentence) or "\\begin" in sentence:
        return None
    clause, clauses = sentence, [part for part in split(sentence, SEPARATOR) if EQUALS.search(part)]
    if clauses:  # the last one where it follows from those before; they may be answers side by side, `x = 3, x = 5`
        clause, last_sides = clauses[-1], sides(clauses[-1])
        if len(clauses) > 1 and len(last_sides) <= 2 and is_name(WORD.sub("", last_sides[0])):
            return None
    last = bare(IS.split(ASIDE.sub("", bare(sides(clause)[-1])))[-1])
    inside = [part for part in WORD.split(last) if bare(part)]
    return bare(inside[0]) if len(inside) == 1 else None
