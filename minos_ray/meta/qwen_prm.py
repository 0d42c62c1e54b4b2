"""Qwen2.5-Math-PRM as transformers' Qwen2 and a small head, so that no code comes with the weights."""

from typing import ClassVar

from torch import nn
from transformers import Qwen2Config, Qwen2Model, Qwen2PreTrainedModel


class QwenRewardModel(Qwen2PreTrainedModel):
    """Two classes at every token (0 wrong, 1 right); its weights are named as in `Qwen2ForProcessRewardModel`."""

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = ["lm_head"]

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.model = Qwen2Model(config)
        self.score = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))
        self.post_init()
