"""Selectors, which choose the ICDs (in-context demonstrations) to show with a query. Does not import torch."""

from collections.abc import Iterable

from icdsel.records import Pointer
from icdsel.registry import Registry
from icdsel.selection.balanced import Balanced
from icdsel.selection.majority import Majority
from icdsel.selection.mmices import Mmices
from icdsel.selection.nearest import Nearest
from icdsel.selection.oracle import Oracle
from icdsel.selection.policy import Policy
from icdsel.selection.random_draws import RandomDraws
from icdsel.selection.selector import Selector
from icdsel.selection.subsets import FacilityLocation, KDpp, Mmr
from icdsel.selection.whole_split import FromWholeSplit
from icdsel.selection.zero_shot import ZeroShot
from icdsel.settings.values import PoolSize

__all__ = ["POLICY", "RANDOM", "SELECTORS", "Selector", "always_shown", "selector_named", "selectors_named"]

POLICY, RANDOM = Policy(), RandomDraws()

# Each exists twice: over the candidate pools, and as `<name>-all` over the whole training split.
_BASELINES: tuple[Selector, ...] = (
    Balanced(),
    Nearest("nearest-image", "image"),
    Nearest("nearest-question", "question"),
    Nearest("nearest-both", "both"),
    Mmices(),
    Mmr("mmr", weight=0.5),  # both terms count alike
    KDpp("k-dpp", scale=0.1),  # as in CEIL
    FacilityLocation("facility-location"),
    Majority(),
)

SELECTORS: Registry[Selector] = Registry(
    "selector",
    (
        POLICY,
        ZeroShot(),
        RANDOM,
        *_BASELINES,
        *map(FromWholeSplit, _BASELINES),
        Oracle(),
    ),
)
"""The selectors, by the name given to `--selector`.

To add one, write a file such as `my_selector.py`, and run `python my_selector.py infer --selector shortest-answers`:

    from icdsel.__main__ import main
    from icdsel.selection import SELECTORS, Selector

    class ShortestAnswers(Selector):
        name = "shortest-answers"

        def choose(self, context, shots):
            train = context.train
            return context.pointers(
                sorted(pool, key=lambda row: len(train[row].answer))[:shots] for pool in context.pools
            )

    SELECTORS.add(ShortestAnswers())
    if __name__ == "__main__":
        main()

* `name` is what users type; files of predictions are named after it.
* `choose(context, shots)` returns each query's ICDs in prompt order: the last one is next to the query. They come from
  the query's pool, `context.pools[q]`: rows of the training split, without the query itself and other excluded
  examples. `icdsel.selection.context` lists all data that a choice can be based on: examples, pools, embeddings,
  rankings, the policy, RL data.
* `SELECTORS.add(FromWholeSplit(ShortestAnswers()))` (`icdsel.selection.whole_split`) adds `shortest-answers-all`, which
  chooses from the whole training split whatever the candidate pools are. Several selectors of one class may differ in
  its arguments: `SELECTORS.add(Mmr("mmr-relevant", weight=0.8))` (`icdsel.selection.subsets`).
* The choice for a query must depend on nothing but the inputs: not on other queries, earlier calls or global random
  state. A selector that draws overrides `seed` (its rows are then called `<name>-<seed>`, and averaged over seeds) and
  seeds its own generator with it and the query's question_id; see `random_draws.py`.
* The attributes of `Selector` declare what it needs. Set them correctly: they decide what is opened for it, and which
  inputs are recorded with its predictions, so that these are reused only while the inputs are the same. If the choice
  depends on other files, override `inputs` and record their fingerprints.
* Import torch inside methods: names and attributes are also used where it is not loaded (`--help`, `compare`).
"""


def always_shown() -> tuple[str, ...]:
    """The names of the baselines that every comparison needs, because a gain means little without them."""
    return tuple(name for name, selector in SELECTORS.items() if selector.always_shown)


def selector_named(name: str) -> Selector:
    """The selector of a row of predictions; if it is not installed here, a stand-in without special properties."""
    return SELECTORS[name] if name in SELECTORS else _Unknown(name)


def selectors_named(names: Iterable[str], pool_size: PoolSize) -> list[Selector]:
    """The selectors of these names, without those that choose the same as another one from pools of this size.

    Where the pools are the whole training split, `nearest-both-all` is `nearest-both`.

    Raises:
        SettingsError: There is no selector of a name.
    """
    return list({one.name: one for one in (SELECTORS.named(name).over(pool_size) for name in names)}.values())


class _Unknown(Selector):
    def __init__(self, name: str) -> None:
        self.name = name

    def choose(self, context: object, shots: int) -> list[Pointer | None]:
        raise NotImplementedError(f"the selector {self.name} is not installed")
