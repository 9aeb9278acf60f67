"""InfoScore's beams, from Lever-Plus's `generate_data.py`, as pointers to imitate before RCE.

The original trains its selector on them over a pool of the chosen ICDs themselves, towards the parity of their
indices (specification §0.1), so it learns nothing. Here the pool is the sampler's, and the label the ICD's place.
"""

from dataclasses import replace
from pathlib import Path

from icdsel.artefacts.lever_plus_rl_data import read_info_score
from icdsel.console import note, warn
from icdsel.policy.groups import Groups, make_groups
from icdsel.settings.tables import RewardSettings
from icdsel.stages.session import Session


def warm_groups(session: Session, path: Path) -> Groups:
    """The beams of `path` over the pools of these settings; ICDs that a pool lacks are added to it.

    Their rewards are 0: all count the same, as in the original.

    Raises:
        RlDataError: the file is no InfoScore data, or of another dataset.
    """
    train = session.train
    groups, rejected = read_info_score(path, [example.question_id for example in train])
    for reason, count in rejected.items():
        warn(f"{path}: {count} beams left out ({reason})")
    queries = session.queries([train.by_id(group.question_id) for group in groups], "train", 1)
    added = 0
    with_pools = []
    for q, group in enumerate(groups):
        scored = tuple({**candidate, "vqa_acc_score": 0.0} for candidate in group.candidates)
        if queries.pools.shared:
            hidden = tuple(train[row].question_id for row in sorted(queries.pools.excluded[q]))
            with_pools.append(replace(group, pool=None, excluded=hidden, candidates=scored))
            continue
        pool = [train[row].question_id for row in queries.pools[q]]
        icds = dict.fromkeys(icd for candidate in group.candidates for icd in candidate["pointer"])
        missing = [icd for icd in icds if icd not in set(pool)]
        added += len(missing)
        with_pools.append(replace(group, pool=(*pool, *missing), candidates=scored))
    if added:
        note(f"{added} ICDs of {path} were in no pool of these settings and were added")
    return make_groups(with_pools, train.row, RewardSettings())
