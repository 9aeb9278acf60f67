"""The sizes of a policy."""

from dataclasses import dataclass

__all__ = ["UPDATES", "PointerConfig"]

UPDATES = ("gate", "residual")
"""How a chosen ICD updates the state; `icdsel.policy.network` has the formulas."""


@dataclass(frozen=True)
class PointerConfig:
    """The sizes of a `PointerNetwork`. The defaults are those of Lever-Plus's network with a gate.

    Attributes:
        d_model: Width of the query and candidate embeddings.
        hidden_dim: Width inside the network; if it equals `d_model` there is no input projection.
        num_layers: Number of cross-attention layers; with 0 the first state does not depend on the pool.
        num_heads: Heads per layer; must divide `hidden_dim`.
        gate: Whether a chosen ICD updates the state. Without an update all steps rank the candidates identically.
        dropout: Dropout before the two output projections and inside the shared encoder.
        attn_dropout: Dropout of the attention weights.
        tower: Inner width of the shared encoder; 0 for neither a shared encoder nor a shared projection.
        answer_dim: Width of what describes the candidates' answers; 0 for a network that sees none.
        query_tower: Inner width of an encoder after the shared one, of queries alone; 0 for none.
        update: With `gate`, how: `gate`, a convex combination of the two, or `residual`, a block that can also move
            the state away from the chosen ICD.
        stop: Whether the policy may stop before the maximum number of ICDs, at none too.
        question_gate: Width of a question's state in an encoder where it decides what of the image counts, for
            embeddings that hold the image's vector beside the question's; 0 for none.

    Raises:
        ValueError: A size is out of its bounds.
    """

    d_model: int
    hidden_dim: int = 256
    num_layers: int = 1
    num_heads: int = 1
    gate: bool = True
    dropout: float = 0.5
    attn_dropout: float = 0.1
    tower: int = 0
    answer_dim: int = 0
    query_tower: int = 0
    update: str = "gate"
    stop: bool = False
    question_gate: int = 0

    def __post_init__(self) -> None:
        bounds = {
            "d_model": 1,
            "hidden_dim": 1,
            "num_layers": 0,
            "num_heads": 1,
            "tower": 0,
            "answer_dim": 0,
            "query_tower": 0,
            "question_gate": 0,
        }
        for name, least in bounds.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        for name in ("dropout", "attn_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        if self.update not in UPDATES:
            raise ValueError(f"update must be one of {', '.join(UPDATES)}, not {self.update!r}")
        if self.question_gate and self.d_model % 2:
            raise ValueError(f"question_gate needs embeddings of two equal parts, not of width {self.d_model}")
        if self.hidden_dim % self.num_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must divide hidden_dim ({self.hidden_dim})")

    @property
    def shared_projection(self) -> bool:
        """Whether queries and candidates share the output projection, as encoders that are shared need."""
        return self.tower > 0 or self.question_gate > 0
