"""The residual block that the encoders of a policy are made of."""

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ResidualBlock"]


class ResidualBlock(nn.Module):
    """A pre-norm residual block, x + W2 drop(GELU(W1 LN(x))).

    W2 is initialised to zero, so that a new network ranks candidates as it would without the block.
    """

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The output [..., width] for an input [..., width]."""
        branch: Tensor = self.down(self.dropout(F.gelu(self.up(self.norm(x)))))
        return x + branch
