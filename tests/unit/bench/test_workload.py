"""The prompts of `icdsel bench --engine`: new pictures each time, and the same ones only where no cache outlasts it."""

from pathlib import Path

from icdsel.bench.workload import Prompts, Sizes, Supply

SIZES = Sizes(3, 2, 1, 8, 9, (12, 8), 4, 50, 200, 4)


def taken(supply: Supply, references: bool = True) -> tuple[Prompts, dict[Path, bytes]]:
    """Prompts, and the pictures that they show."""
    with supply.prompts(3, 2, references) as prompts:
        shown = {example.image for unit in prompts.units for request in unit for example in request.shown}
        return prompts, {path: path.read_bytes() for path in shown}


def test_units_have_the_prompts_of_whole_queries():
    prompts, _ = taken(Supply(SIZES, 0, lasting=False))
    assert [len(unit) for unit in prompts.units] == [4, 2]
    assert [len({request.query for request in unit}) for unit in prompts.units] == [2, 1]
    assert len(set(prompts.chosen)) == 4 and set(prompts.chosen) <= set(range(6))
    assert all(request.references for unit in prompts.units for request in unit)


def test_prompts_without_references_have_none():
    prompts, _ = taken(Supply(SIZES, 0, lasting=False), references=False)
    assert not any(request.references for unit in prompts.units for request in unit)


def test_pictures_are_new_each_time():
    supply = Supply(SIZES, 0, lasting=False)
    first, second = (set(taken(supply)[1].values()) for _ in range(2))
    assert first.isdisjoint(second)


def test_a_seed_decides_the_pictures_unless_a_servers_cache_may_know_them():
    def pictures(lasting: bool) -> set[bytes]:
        return set(taken(Supply(SIZES, 5, lasting))[1].values())

    assert pictures(False) == pictures(False)
    assert pictures(True).isdisjoint(pictures(True) | pictures(False))
