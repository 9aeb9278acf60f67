"""Scores of served requests become training data from which `icdsel train` learns."""

import itertools
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from bundles import write_small_bundle
from command_line import icdsel

from icdsel.artefacts.checkpoint import load_policy
from icdsel.artefacts.run_folder import find_checkpoint
from icdsel.choosing.selector import Selector
from icdsel.errors import RlDataError
from icdsel.serve.feedback import Feedback, Served
from icdsel.serve.feedback_dataset import write_training_data


def test_a_policy_learns_to_choose_what_was_scored_well(tmp_path: Path) -> None:
    session = write_small_bundle(tmp_path / "bundle", tmp_path)
    selector, held_out = Selector.load(tmp_path / "bundle"), session.split("validation")
    journal = tmp_path / "feedback.jsonl"
    feedback = Feedback(journal, "vqa")
    train = selector.bundle.train
    liked = train[0].answer
    for number, query in enumerate(held_out[:16]):
        content = query.image.read_bytes()
        own = selector.query(selector.hold(content), query.question)
        for score in (0.0, 1.0):  # well scored is what shows one answer
            rows = [row for row, icd in enumerate(train) if (icd.answer == liked) == bool(score)]
            icds = tuple(train[row] for row in itertools.islice(itertools.cycle(rows), number, number + 1))
            feedback.remember(f"{number}-{score}", Served(own, icds, content, time.monotonic()))
            feedback.score(f"{number}-{score}", score)
    feedback.close()

    flags = ("--run", tmp_path / "bundle", "--feedback", journal, "--feedback-data", tmp_path / "learn")
    assert "16 served queries" in icdsel("serve", *flags)
    with pytest.raises(RlDataError, match="exists"):
        write_training_data(journal, list(train), tmp_path / "learn")
    with pytest.raises(RlDataError, match="several images, or options"):
        write_training_data(journal, [replace(train[0], options=("a", "b"))], tmp_path / "other")
    places = (
        "--dataset",
        tmp_path / "learn/dataset.jsonl",
        "--results-dir",
        tmp_path / "results",
        "--model",
        "tiny-vlm",
    )
    data = ("--rl-data", tmp_path / "learn/rl_data.jsonl", "--pool-size", "all")
    icdsel("train", *places, *data, "--run", "learned", "--rce-epochs", 12)
    metrics = tmp_path / "results/dataset/model_cpk/learned/metrics.jsonl"
    rewards = [json.loads(line)["expected_reward"] for line in metrics.read_text().splitlines()]
    assert rewards[-1] > rewards[0] + 0.05, rewards

    run = tmp_path / "results/dataset/model_cpk/learned"
    learned = selector.with_policy(load_policy(find_checkpoint(run)))
    assert len(learned.bundle.train) == len(train)  # the served queries are no candidates

    def liked_share(chooser: Selector) -> float:
        chosen = chooser.choose_all(list(held_out), 1)
        return sum(choice.icds[0].answer == liked for choice in chosen) / len(chosen)

    assert liked_share(learned) > liked_share(selector) + 0.3
