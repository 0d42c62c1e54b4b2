"""The text of a message, whatever shape an endpoint gives it: a text, or chunks of which some are thinking."""

from typing import Any

from minos_ray.steps.own_text import without_thinking

TEXTS = {"text", "output_text"}
"""Types of chunks that hold what the reader is to see; Mistral's reasoning models put chunks of `thinking` before."""


def visible(content: Any) -> str | None:
    """What the reader is to see of a message's content, without thinking; None when it is neither text nor chunks."""
    text = joined(content)
    return None if text is None else without_thinking(clean(text))


def joined(content: Any) -> str | None:
    """The text of all chunks in a row; no content at all (null) is the empty text."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = [chunk_text(chunk) for chunk in (content if isinstance(content, list) else [content])]
    return "".join(text for text in texts if text is not None) if None not in texts else None


def chunk_text(chunk: Any) -> str | None:
    """The text of one chunk, empty where it is of another kind; None when it is no chunk."""
    if isinstance(chunk, str):
        return chunk
    if not isinstance(chunk, dict):
        return None
    if chunk.get("thought") or "reasoningContent" in chunk:  # Gemini's parts, Bedrock's blocks
        return ""
    kind, text = chunk.get("type") or "text", chunk.get("text")
    if not isinstance(kind, str):
        return None
    return (text if isinstance(text, str) else None) if kind in TEXTS else ""


def clean(text: str) -> str:
    """The text with halves of surrogate pairs, which no file and no table takes, as replacement characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
