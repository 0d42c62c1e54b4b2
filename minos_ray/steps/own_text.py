"""What a reader of a model's text leaves out: its thinking, and the next question that a base model goes on with.

Servers without a reasoning parser leave thinking in the text; chat templates often open it in the prompt, so that the
text has its end alone; a text that was cut off has its beginning alone.
"""

import re

# DeepSeek-R1, QwQ, Qwen3 and most others, with a prefix (Seed-OSS, MiniMax M3, LongCat) or a suffix; Magistral; Kimi;
# Command A; OpenThoughts; gpt-oss (harmony: the analysis channel); Gemma 4; Granite 3.2.
TAG = r"(?:\w+[:_])?(?:think|thinking|thought|thoughts|reasoning|scratchpad)(?::\w+)?"
OPENING = (
    rf"<{TAG}>|\[THINK\]|\u25c1think\u25b7|<\|START_THINKING\|>|<\|begin_of_thought\|>"
    r"|<\|channel\|>analysis<\|message\|>|<\|channel>thought\b|^\s*here(?:'s| is) my thought process:"
)
CLOSING = (
    rf"</{TAG}>|\[/THINK\]|\u25c1/think\u25b7|<\|END_THINKING\|>|<\|end_of_thought\|>"
    r"|(?:<\|end\|>)?(?:<\|start\|>assistant)?<\|channel\|>final<\|message\|>|<channel\|>|here(?:'s| is) my response:"
)
CLOSED = re.compile(f"(?:{OPENING}).*?(?:{CLOSING})", re.DOTALL | re.IGNORECASE)
FIRST_PART = re.compile(f"^.*(?:{CLOSING})", re.DOTALL | re.IGNORECASE)
END = re.compile(CLOSING, re.IGNORECASE)
CUT_OFF = re.compile(f"(?:{OPENING}).*$", re.DOTALL | re.IGNORECASE)

# What some put around the answer behind their thinking: Command A, OpenThoughts, DeepSeek-R1's own prompt.
FRAMED = re.compile(
    r"\s*(?:<\|START_RESPONSE\|>|<\|begin_of_solution\|>|<answer>)(.*?)"
    r"(?:<\|END_RESPONSE\|>|<\|end_of_solution\|>|</answer>)?\s*",
    re.DOTALL | re.IGNORECASE,
)


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


# A new turn of a chat, whatever stands before it.
TURN = re.compile(
    r"<\|(?:user|im_start\|>\s*user|start_header_id\|>\s*user|start\|>\s*user)|<start_of_turn>\s*user|\[INST\]"
    r"|\n#{2,}\s*(?:Instruction|Human|User|(?P<question>Question|Problem|Input))s?\s*:"
)
# The next question of a few-shot prompt: these words begin solutions too, so a stated answer must stand before.
WORDS = r"(?:Question|Problem|Exercise|Q|User|Human|Instruction|Input|Example(?=[ \t]*[0-9])|Next (?:question|problem))"
HEAD = rf"(?:[ \t>*_#]*{WORDS}[ \t]*[0-9]*[*_]*[ \t]*:|#+[ \t*_]*(?:Question|Problem|Exercise)[ \t]*[0-9]*[*_ \t]*\n)"
BEGINS = re.compile(r"\s*" + HEAD)
NEXT = re.compile(r"\n" + HEAD + r"(?!\s*$)")
# The end of a text, where the endpoint leaves it in.
ENDED = re.compile(r"<\|(?:endoftext|end_of_text)\|>|<\uff5cend\u2581of\u2581sentence\uff5c>|</s>|<eos>")
STATED = re.compile(
    r"\banswer\s*(?:\*+\s*)?(?:(?:is|are)\b[^\n]{0,60}?[0-9$\\]|(?:is|are)?\s*[:=][\s*]*\S)|####\s*\S"
    r"|\\f?boxed\s*\{?\s*[^\s{}]|^[ \t]*\**A[ \t]*:[ \t]*\S",
    re.IGNORECASE | re.MULTILINE,
)


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
