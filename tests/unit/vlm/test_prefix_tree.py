"""The tree of prompts with common beginnings."""

from hypothesis import given
from hypothesis import strategies as st

from icdsel.vlm.local.prefix_tree import prefix_tree


def test_common_beginnings_are_in_the_tree_once() -> None:
    # Two prompts begin "h a", a third "h b", a fourth is the header and its query alone.
    levels = prefix_tree({7: "hax", 8: "hay", 9: "hbx", 10: "hx"})
    assert [level.blocks for level in levels] == [["h"], ["a", "b", "x"], ["x", "y", "x"]]
    assert [level.parents for level in levels] == [[0], [0, 0, 0], [0, 0, 1]]
    assert [level.inner for level in levels] == [[0], [0, 1], []]
    assert [level.ends for level in levels] == [[], [(2, 10)], [(0, 7), (1, 8), (2, 9)]]


@given(prompts=st.dictionaries(st.integers(), st.text("abc", min_size=1, max_size=5), max_size=30))
def test_every_prompt_is_a_path_and_no_block_is_read_twice(prompts: dict[int, str]) -> None:
    levels = prefix_tree(prompts)
    found: dict[int, str] = {}
    beginnings = [""]  # of the inner nodes of the level above
    for level in levels:
        paths = [beginnings[parent] + block for parent, block in zip(level.parents, level.blocks, strict=True)]
        assert len(set(paths)) == len(paths)
        found |= {key: paths[node] for node, key in level.ends}
        beginnings = [paths[node] for node in level.inner]
        assert all(any(text.startswith(path) for text in prompts.values()) for path in paths)
    assert found == prompts
    assert beginnings == [] or not levels
