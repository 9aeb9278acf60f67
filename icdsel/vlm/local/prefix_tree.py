"""A tree of prompts with common prefixes, so that shared blocks are computed once."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

B = TypeVar("B", bound=Hashable)


@dataclass
class Level(Generic[B]):
    """The nodes at one depth of the tree; each is a block that follows its parent's block.

    Attributes:
        blocks: The block of each node.
        parents: The parent of each node, as a position among the `inner` nodes of the level above; 0 at the top.
        ends: (node, prompt) for each prompt that ends here.
        inner: The nodes that have children.
    """

    blocks: list[B] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    ends: list[tuple[int, int]] = field(default_factory=list)
    inner: list[int] = field(default_factory=list)


def prefix_tree(prompts: Mapping[int, Sequence[B]]) -> list[Level[B]]:
    """Builds the tree of prompts, level by level.

    Args:
        prompts: Prompts by key, each with at least one block.
    """
    levels: list[Level[B]] = []
    nodes: dict[tuple[int, int, B], int] = {}  # depth, parent, block → node of that level
    inner: dict[tuple[int, int], int] = {}  # depth, node → position among the inner nodes
    for key, blocks in prompts.items():
        parent = 0
        for depth, block in enumerate(blocks):
            if depth == len(levels):
                levels.append(Level())
            level = levels[depth]
            node = nodes.setdefault((depth, parent, block), len(level.blocks))
            if node == len(level.blocks):
                level.blocks.append(block)
                level.parents.append(parent)
            if depth + 1 == len(blocks):
                level.ends.append((node, key))
                break
            parent = inner.setdefault((depth, node), len(level.inner))
            if parent == len(level.inner):
                level.inner.append(node)
    return levels
