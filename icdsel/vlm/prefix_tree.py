"""Prompts that begin alike, as a tree: what they share is read once."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

B = TypeVar("B", bound=Hashable)


@dataclass
class Level(Generic[B]):
    """The nodes of one depth: each a block that is read after its parent.

    Attributes:
        blocks: The block of each node.
        parents: For each node, which of the level above's `inner` nodes comes before it; 0 for all at the top.
        ends: (node, prompt) for each prompt that ends here.
        inner: The nodes that something follows.
    """

    blocks: list[B] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    ends: list[tuple[int, int]] = field(default_factory=list)
    inner: list[int] = field(default_factory=list)


def prefix_tree(prompts: Mapping[int, Sequence[B]]) -> list[Level[B]]:
    """The tree of prompts, level by level.

    Args:
        prompts: Prompts by any key, each of one block or more.
    """
    levels: list[Level[B]] = []
    nodes: dict[tuple[int, int, B], int] = {}  # depth, parent, block → the node in its level
    followed: dict[tuple[int, int], int] = {}  # depth, node → its place among the inner ones
    for key, blocks in prompts.items():
        above = 0
        for depth, block in enumerate(blocks):
            if depth == len(levels):
                levels.append(Level())
            level = levels[depth]
            node = nodes.setdefault((depth, above, block), len(level.blocks))
            if node == len(level.blocks):
                level.blocks.append(block)
                level.parents.append(above)
            if depth + 1 == len(blocks):
                level.ends.append((node, key))
                break
            above = followed.setdefault((depth, node), len(level.inner))
            if above == len(level.inner):
                level.inner.append(node)
    return levels
