"""How many tokens a request will take, learned from the ones that ended."""

BYTES_PER_TOKEN = 3.0
"""Until an answer says better; English text has about four."""


class Usage:
    """Tokens per byte of prompt and tokens per answer, as means over what came back."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.bytes = self.prompt = self.completion = self.answers = 0

    def learn(self, size: int, prompt_tokens: int, completion_tokens: int) -> None:
        """One answer to a prompt of `size` bytes."""
        self.bytes += size
        self.prompt += prompt_tokens
        self.completion += completion_tokens
        self.answers += 1

    def expected(self, size: int) -> float:
        """Tokens of a prompt of `size` bytes and its answer."""
        per_byte = self.prompt / self.bytes if self.bytes else 1 / BYTES_PER_TOKEN
        return size * per_byte + (self.completion / self.answers if self.answers else self.max_tokens)
