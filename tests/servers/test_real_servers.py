"""Real servers with the tiny VLM. Left out unless asked for, since their environments have some GB:

TEST_SERVERS=FOLDER pytest -n0 -s -m server tests/servers
"""

import os
from pathlib import Path

import pytest

from .agreement import local_engine, prompts
from .machines import KINDS, TRANSFORMERS, VLLM, RealServer
from .run import SEED, agreements, commands

FOLDER = os.environ.get("TEST_SERVERS")
PROMPTS = {VLLM.name: 2000, TRANSFORMERS.name: 200}
LARGEST_DIFFERENCE = 1e-3  # nats

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(not FOLDER, reason="TEST_SERVERS names no folder for the servers' environments"),
]


@pytest.mark.parametrize("name", PROMPTS)
def test_answers_equal_those_of_the_local_scorer_whatever_is_cached(name, tmp_path):
    requests = prompts(tmp_path, PROMPTS[name], SEED, False)
    local = local_engine().answer(requests)
    for found in agreements(KINDS[name], Path(str(FOLDER)), tmp_path, requests, local):
        print(found)
        assert not found.failed and not found.different and not found.lengths


def test_log_probs_of_references_equal_those_of_the_local_scorer_whatever_is_cached(tmp_path):
    requests = prompts(tmp_path, 100, SEED + 1, True)
    local = local_engine().answer(requests)
    for found in agreements(VLLM, Path(str(FOLDER)), tmp_path, requests, local):
        print(found)
        assert not found.failed and not found.different and not found.lengths
        assert found.references > len(requests) and found.furthest < LARGEST_DIFFERENCE


def test_whole_commands_equal_those_of_the_local_scorer_and_survive_interruptions(tmp_path):
    with RealServer(VLLM, Path(str(FOLDER)), tmp_path) as server:
        for row in commands(server, tmp_path):
            print(row)
            assert row[-1].startswith("equal")
