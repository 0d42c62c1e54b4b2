"""The thinking of reasoning models: what a reader of a solution or a critique leaves out.

Servers without a reasoning parser leave it in the text; chat templates often open it in the prompt, so that the text
has its end alone; a text that was cut off has its beginning alone.
"""

import re

# DeepSeek-R1, QwQ, Qwen3 and most others; Magistral; Kimi; Seed-OSS; gpt-oss (harmony: the analysis channel).
OPENING = r"<(?:seed:)?(?:think|thinking|thought|reasoning)>|\[THINK\]|◁think▷|<\|channel\|>analysis<\|message\|>"
CLOSING = (
    r"</(?:seed:)?(?:think|thinking|thought|reasoning)>|\[/THINK\]|◁/think▷"
    r"|<\|end\|>(?:<\|start\|>assistant)?<\|channel\|>final<\|message\|>"
)
CLOSED = re.compile(f"(?:{OPENING}).*?(?:{CLOSING})", re.DOTALL)
FIRST_PART = re.compile(f"^.*(?:{CLOSING})", re.DOTALL)
CUT_OFF = re.compile(f"(?:{OPENING}).*$", re.DOTALL)


def without_thinking(text: str) -> str:
    """The text outside of the model's thinking; of one that was cut off while it thinks, what stood before.

    A text without thinking comes back unchanged.
    """
    visible = CUT_OFF.sub("", FIRST_PART.sub("", CLOSED.sub("", text)))
    return text if visible == text else visible.strip()
