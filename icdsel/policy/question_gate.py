"""An encoder in which the question decides what of the image counts.

It works like the FiLM layers of Perez et al. 2018 ("FiLM: Visual Reasoning with a General Conditioning Layer").
An embedding is an image's vector E_i beside a question's vector E_t, of width d / 2 each:

    u = W_i E_i;    z = block(LN(W_t E_t + b_t));    features = u ⊙ (G z + b_g) + (H z + b_h)

W_i is shared by queries and candidates, so that the same value of an attribute looks the same on both sides. What a
question says differs by role: a query needs something, a candidate shows something. So each role has its own W_t,
block, G and H. z is narrow: there are few kinds of questions, in whatever words.
"""

import math

from torch import Tensor, nn

from icdsel.policy.config import PointerConfig
from icdsel.policy.residual import ResidualBlock

__all__ = ["QuestionGate"]

_INNER = 4
"""The inner width of the block, in multiples of the width of z."""


class QuestionGate(nn.Module):
    """Encodes embeddings [..., d] of queries and of candidates as features [..., h]."""

    def __init__(self, config: PointerConfig) -> None:
        super().__init__()
        self.part = config.d_model // 2
        self.image = nn.Linear(self.part, config.hidden_dim, bias=False)
        self.query = _Question(self.part, config)
        self.candidate = _Question(self.part, config)

    def of_queries(self, x: Tensor) -> Tensor:
        """Features [..., h] of queries [..., d]."""
        return self._gated(self.query, x)

    def of_candidates(self, x: Tensor) -> Tensor:
        """Features [..., h] of candidates [..., d]."""
        return self._gated(self.candidate, x)

    def _gated(self, role: "_Question", x: Tensor) -> Tensor:
        x = x * math.sqrt(self.part)  # the entries of unit vectors are small
        scale, shift = role(x[..., self.part :])  # (..., h) each
        gated: Tensor = self.image(x[..., : self.part]) * scale + shift
        return gated


class _Question(nn.Module):
    """What a question means for the image, in one role."""

    def __init__(self, part: int, config: PointerConfig) -> None:
        super().__init__()
        width = config.question_gate
        self.down = nn.Linear(part, width)
        self.norm = nn.LayerNorm(width)
        self.block = ResidualBlock(width, _INNER * width, config.dropout)
        self.scale = nn.Linear(width, config.hidden_dim)
        self.shift = nn.Linear(width, config.hidden_dim)

    def forward(self, question: Tensor) -> tuple[Tensor, Tensor]:
        z = self.block(self.norm(self.down(question)))  # (..., z)
        return self.scale(z), self.shift(z)
