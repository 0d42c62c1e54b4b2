"""The thinking of reasoning models: what a reader of a solution or a critique leaves out.

Servers without a reasoning parser leave it in the text; chat templates often open it in the prompt, so that the text
has its end alone; a text that was cut off has its beginning alone.
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
