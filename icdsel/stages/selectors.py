"""Who chooses a query's ICDs: the policy, the baselines that it stands beside, the best of the scored pointers.

Every selector chooses from the same pool of a query; `nearest-both-all` alone searches the whole training split.
"""

import random
from functools import cached_property
from pathlib import Path

import torch

from icdsel.artefacts import rl_data
from icdsel.artefacts.checkpoint import load_policy, require_width
from icdsel.errors import RlDataError
from icdsel.policy.network import PointerNetwork
from icdsel.records import Pointer
from icdsel.retrieval.embeddings import Embeddings
from icdsel.retrieval.neighbours import nearest_rows
from icdsel.retrieval.topk import stable_topk
from icdsel.settings.identity import identity
from icdsel.settings.loading import Settings
from icdsel.stages.session import Queries, Session
from icdsel.store.fingerprints import fingerprint_file, has_fingerprint, unchanged
from icdsel.store.metadata import differences, read_metadata
from icdsel.tasks.scoring import SCORER_VERSION

BATCH = 256


def random_seed(settings: Settings) -> int:
    """The seed of the selector `random`."""
    return settings.data.seed if settings.infer.random_seed is None else settings.infer.random_seed


def scored_path(settings: Settings) -> Path:
    """The RL data of the split that is answered, which the oracle chooses from."""
    proposals = settings.proposals.model_copy(update={"query_split": settings.infer.split})
    return rl_data.rl_data_path(settings.model_copy(update={"proposals": proposals}))


class Selectors:
    """Chooses pointers (question_ids, in prompt order) for all queries at a number of shots."""

    def __init__(self, session: Session, queries: Queries, policy_file: Path | None) -> None:
        self.session, self.queries = session, queries
        self._rankings: dict[str, list[list[int]]] = {}
        self.network: PointerNetwork | None = None
        self.fingerprints: dict[str, str | None] = {}
        """Of the file that a selector chooses by, as it was read: hours later another one may lie there."""
        if policy_file:
            with unchanged(policy_file):
                self.network = load_policy(policy_file).eval()
                self.fingerprints["policy"] = fingerprint_file(policy_file)
            require_width(self.network, queries.embeddings.shape[1], policy_file)

    def choose(self, selector: str, shots: int) -> list[Pointer | None]:
        """The pointer of each query; None where the selector has none (the oracle, for a query never scored)."""
        examples, train = self.queries.examples, self.session.train
        if selector == "zero-shot":
            return [() for _ in examples]
        if selector == "oracle":
            return [self._best_scored(query.question_id, shots) for query in examples]
        if selector == "random":
            rows = [self._random(q, shots) for q in range(len(examples))]
        else:  # most similar last: nearest to the query in the prompt
            rows = [row[:shots] if selector == "policy" else row[:shots][::-1] for row in self._ranked(selector)]
        return [tuple(train[row].question_id for row in chosen) for chosen in rows]

    def _random(self, q: int, shots: int) -> list[int]:
        rng = random.Random(f"random-{random_seed(self.session.settings)}-{self.queries.examples[q].question_id}")
        pools = self.queries.pools
        if not pools.shared:
            return rng.sample(pools[q], shots)
        drawn = rng.sample(range(len(self.session.train)), shots + len(pools.hidden[q]))
        return [row for row in drawn if row not in pools.hidden[q]][:shots]

    def _ranked(self, selector: str) -> list[list[int]]:
        """Rows for the largest number of shots, best first: those for fewer shots are their beginnings."""
        if selector not in self._rankings:
            most = max(self.session.settings.infer.shots)
            self._rankings[selector] = self._greedy(most) if selector == "policy" else self._nearest(selector, most)
        return self._rankings[selector]

    def _greedy(self, shots: int) -> list[list[int]]:
        assert self.network is not None
        chosen: list[list[int]] = []
        for at in range(0, len(self.queries.examples), BATCH):
            rows, mask = self.queries.pools.batch(at, BATCH)  # (B, K) or (1, N), (B, K)
            query = self.queries.embeddings[at : at + BATCH]
            candidates = self.session.embeddings[None] if self.queries.pools.shared else self.session.embeddings[rows]
            places = self.network.greedy(query, candidates, shots, None if mask.all() else mask)
            chosen += rows.expand(len(query), -1).gather(1, places).tolist()
        return chosen

    def _nearest(self, selector: str, shots: int) -> list[list[int]]:
        """Rows of the training split, the most similar first."""
        kind = {"nearest-image": "image", "nearest-question": "question"}.get(selector, "both")
        query, table = self._similar.of(kind), self.session.similar_train.of(kind)
        pools = self.queries.pools
        if selector == "nearest-both-all" or pools.shared:
            return list(nearest_rows(query, table, shots, self.queries.pools.hidden))
        chosen: list[list[int]] = []
        for at in range(0, len(query), BATCH):
            rows, mask = pools.batch(at, BATCH)  # (B, K) each
            part = query[at : at + BATCH]
            similar = torch.einsum("bd,bkd->bk", part, table[rows]).masked_fill(~mask, -torch.inf)  # (B, K)
            chosen += rows.gather(1, stable_topk(similar, shots)[1]).tolist()
        return chosen

    @cached_property
    def _similar(self) -> Embeddings:
        return self.session.similar(self.queries.examples, self.session.settings.infer.split)

    def fingerprint(self, selector: str) -> str | None:
        """Of the file that a selector chooses by: a checkpoint, for the oracle RL data; None where it has none."""
        if selector == "oracle" and selector not in self.fingerprints:
            path = scored_path(self.session.settings)
            self.fingerprints[selector] = fingerprint_file(path) if path.is_file() else None
        return self.fingerprints.get(selector)

    @cached_property
    def _scored(self) -> dict[int, list[tuple[tuple[float, float], Pointer]]]:
        """The scored pointers of each query, with accuracy and the right answer's probability."""
        settings = self.session.settings
        split = settings.infer.split
        path = scored_path(settings)
        try:
            groups = rl_data.read_rl_data(path).groups
        except RlDataError as error:
            raise RlDataError(
                f"the oracle needs scored pointers of the {split} queries: `icdsel gen-rl-data --split {split} "
                f"--queries {len(self.queries.examples)}`, with the same pools and prompts, makes them. ({error})"
            ) from None
        now = identity(settings, "data", "vlm") | self.session.identity
        now |= {"queries": self.session.fingerprint(split), "scorer": SCORER_VERSION}
        scored = read_metadata(rl_data.metadata_path(path))["identity"]
        if told := differences({name: scored.get(name) for name in now}, now):
            raise RlDataError(
                f"{path}, which the oracle chooses from, was made under other settings:\n  " + "\n  ".join(told)
            )
        if not has_fingerprint(path, self.fingerprint("oracle")):
            raise RlDataError(f"{path} was changed while it was read: give the same command again")
        return {
            group.question_id: [((c.score or 0.0, c.reference_prob or 0.0), c.pointer) for c in group.candidates]
            for group in groups
        }

    def _best_scored(self, question_id: int, shots: int) -> Pointer | None:
        """Of the scored pointers of this length the best, by accuracy, then by the right answer's probability."""
        scored = [entry for entry in self._scored.get(question_id, []) if len(entry[1]) == shots]
        return max(scored)[1] if scored else None
