import pytest

from icdsel.comparison.compare import Comparison, comparison_rows
from icdsel.comparison.headline import Headline, headlines
from icdsel.comparison.scores import Scores

N = 400


def row(name: str, selector: str, right: int, *, pool: str | None = "64", shots: int = 2, shift: int = 0) -> Scores:
    """A row that is right on `right` of the queries, beginning with number `shift`."""
    by_query = {i: float((i - shift) % N < right) for i in range(N)}
    return Scores(name, selector, shots, by_query, "official", pool=pool)


def table(*rows: Scores) -> Comparison:
    """The comparison of rows of which none is a seed of a mean."""
    return Comparison(comparison_rows(rows, seed=42), {(one.title, one.shots): one for one in rows}, 42)


def rows_of(headline: Headline) -> tuple[str, str | None]:
    return headline.baseline.name, headline.policy and headline.policy.name


def test_the_strongest_method_that_learns_nothing_leads_whatever_its_pool() -> None:
    # The published table: the policy looks best among the rows of its pool, and is worse than a row over all examples.
    first, second = headlines(
        table(
            row("policy-demo-grpo_epoch3", "policy", 360),
            row("nearest-image", "nearest-image", 212),
            row("random-42", "random", 52),
            row("nearest-both-all", "nearest-both-all", 380, pool="all"),
            row("oracle", "oracle", 399),
            row("zero-shot", "zero-shot", 0, pool=None, shots=0),
        )
    )
    assert rows_of(first) == ("nearest-both-all", "policy-demo-grpo_epoch3")
    assert first.policy is not None and first.policy.reference == "nearest-both-all"
    assert (first.policy.difference, first.policy.wins, first.policy.losses) == (-5.0, 0, 20)
    assert first.policy.difference_high is not None and first.policy.difference_high < 0
    assert first.verdict == "worse"
    assert str(first) == (
        "The strongest method that learns nothing is nearest-both-all (pool all, 2 shots): 95.0. The best learned "
        "policy, policy-demo-grpo_epoch3 (pool 64, 2 shots), has 90.0 and is worse: −5.0 points "
        f"(−{-first.policy.difference_low:.1f} … −{-first.policy.difference_high:.1f}), p <0.001."
    )
    # Within its pool it is the best.
    assert rows_of(second) == ("nearest-image", "policy-demo-grpo_epoch3")
    assert (second.pool, second.verdict) == ("64", "better")
    assert str(second).startswith("In pools of 64, the strongest method that learns nothing is nearest-image (pool 64")
    assert "beats it: +37.0 points" in str(second)


def test_of_equals_the_one_that_queries_the_vlm_leads() -> None:
    """At 1 shot, the majority answer is that of the nearest demonstration."""
    rows = (row("majority", "majority", 300, shots=1), row("nearest-both", "nearest-both", 300, shots=1))
    [only] = headlines(table(*rows, row("policy-a-rce_epoch1", "policy", 302)))
    assert only.baseline.name == "nearest-both"


def test_an_upper_bound_is_no_method() -> None:
    [only] = headlines(
        table(row("policy-a-rce_epoch1", "policy", 300), row("oracle", "oracle", 399), row("random-1", "random", 9))
    )
    assert rows_of(only) == ("random-1", "policy-a-rce_epoch1")


def test_a_small_difference_is_not_established() -> None:
    [only] = headlines(
        table(row("policy-a-rce_epoch1", "policy", 302, shift=3), row("nearest-both", "nearest-both", 300))
    )
    assert (only.policy and only.policy.difference, only.verdict) == (0.5, "")
    assert "and is not shown to beat it: +0.5 points (" in str(only)


def test_the_best_of_several_policies_is_corrected_for_having_been_picked() -> None:
    # 20 policies at 2 shots and one at 1 shot, each better than the baseline by what one alone would be sure of.
    baseline = row("nearest-both", "nearest-both", 200)
    alone = row("policy-a-rce_epoch1", "policy", 208)
    [one] = headlines(table(alone, baseline))
    others = [row(f"policy-r{k}-rce_epoch1", "policy", 208 - k % 2) for k in range(20)]
    [best] = headlines(table(alone, *others, baseline))
    assert best.policy is not None and one.policy is not None
    assert one.verdict == "better" and best.verdict == ""
    assert best.policy.p_holm == pytest.approx(21 * float(one.policy.p_value or 0), rel=0.3)


def test_rows_at_other_numbers_of_shots_are_compared_query_by_query() -> None:
    [only] = headlines(
        table(
            row("policy-a-rce_epoch1", "policy", 320, shots=4),
            row("policy-a-rce_epoch1", "policy", 320, shots=2),
            row("nearest-both", "nearest-both", 300, shots=1),
            row("nearest-both", "nearest-both", 200, shots=2),
        )
    )
    assert (only.baseline.shots, only.baseline.accuracy) == (1, 75.0)
    assert only.policy is not None and (only.policy.shots, only.policy.difference) == (2, 5.0)  # of equals the shorter
    assert (only.policy.wins, only.policy.losses, only.policy.ties) == (20, 0, 380)


def test_zero_shot_competes_in_every_pool() -> None:
    [only] = headlines(
        table(
            row("policy-a-rce_epoch1", "policy", 100, pool="16"),
            row("random-42", "random", 50, pool="16"),
            row("nearest-both-all", "nearest-both-all", 60, pool="all"),
            row("zero-shot", "zero-shot", 300, pool=None, shots=0),
        )
    )  # no second headline: in pools of 16 it is the same
    assert rows_of(only) == ("zero-shot", "policy-a-rce_epoch1") and only.verdict == "worse"
    assert str(only).startswith("The strongest method that learns nothing is zero-shot (0 shots): 75.0.")


def test_a_table_without_policies_still_has_a_strongest_method() -> None:
    [only] = headlines(table(row("random-42", "random", 50), row("nearest-both", "nearest-both", 100)))
    assert rows_of(only) == ("nearest-both", None)
    assert str(only).endswith("There is no learned policy to compare with it.")
    assert headlines(table(row("policy-a-rce_epoch1", "policy", 100))) == []


def test_the_best_of_several_baselines_is_corrected_for_having_been_picked() -> None:
    # Worse by what would be sure of a single baseline; but of 20 that are equally good, one is better by luck.
    policy, best = row("policy-a-rce_epoch1", "policy", 200), row("nearest-both", "nearest-both", 208)
    others = [row("nearest-both", "nearest-both", 207 - k % 2, shots=3 + k) for k in range(20)]
    [one] = headlines(table(policy, best))
    [many] = headlines(table(policy, best, *others))
    assert one.verdict == "worse" and rows_of(many) == rows_of(one) and many.verdict == ""
    assert one.policy is not None and many.policy is not None
    assert many.policy.p_holm == pytest.approx(21 * float(one.policy.p_value or 0), rel=0.3)
    # What beats the best of them beats each: that needs no correction.
    better = row("policy-b-rce_epoch1", "policy", 216)
    assert headlines(table(better, best, *others))[0].policy == headlines(table(better, best))[0].policy


def test_rows_of_an_unknown_pool_are_in_no_pool_of_a_headline() -> None:
    first, second = headlines(
        table(
            row("policy-a-rce_epoch1", "policy", 200),
            row("nearest-image", "nearest-image", 100),
            row("nearest-both", "nearest-both", 300, pool=None),
            row("nearest-both-all", "nearest-both-all", 350, pool="all"),
            row("zero-shot", "zero-shot", 50, pool=None, shots=0),
        )
    )
    assert rows_of(first) == ("nearest-both-all", "policy-a-rce_epoch1")
    assert rows_of(second) == ("nearest-image", "policy-a-rce_epoch1") and second.pool == "64"
