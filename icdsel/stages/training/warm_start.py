"""InfoScore's beams, from Lever-Plus's `generate_data.py`, as pointers to imitate before RCE.

Lever-Plus trains its selector on them over a pool of only the chosen ICDs, with the parity of their indices as labels,
so it learns nothing. Here the pool is the sampler's, and the label is the ICD's position in it.
"""

from dataclasses import replace
from pathlib import Path

from icdsel.artefacts.lever_plus_rl_data import read_info_score
from icdsel.console import note, warn
from icdsel.policy.groups import Groups, make_groups
from icdsel.settings.tables import RewardSettings
from icdsel.stages.session import Session


def warm_groups(session: Session, path: Path) -> Groups:
    """The beams of `path` over the pools of the settings; ICDs that are missing in a pool are added to it.

    Their rewards are 0: all have the same weight, as in Lever-Plus.

    Raises:
        RlDataError: The file does not hold InfoScore data, or those of another dataset.
    """
    train = session.train
    groups, rejected = read_info_score(path, [example.question_id for example in train])
    for reason, count in rejected.items():
        warn(f"{path}: {count} beams left out ({reason})")
    queries = session.queries([train.by_id(group.question_id) for group in groups], "train", 1)
    added = 0
    with_pools = []
    for q, group in enumerate(groups):
        beams = tuple(replace(candidate, correct=0, score=0.0) for candidate in group.candidates)
        if queries.pools.shared:
            hidden = tuple(train[row].question_id for row in sorted(queries.pools.excluded[q]))
            with_pools.append(replace(group, pool=None, excluded=hidden, candidates=beams))
            continue
        pool = [train[row].question_id for row in queries.pools[q]]
        icds = dict.fromkeys(icd for candidate in group.candidates for icd in candidate.pointer)
        missing = [icd for icd in icds if icd not in set(pool)]
        added += len(missing)
        with_pools.append(replace(group, pool=(*pool, *missing), candidates=beams))
    if added:
        note(f"{added} ICDs of {path} were in no pool of these settings and were added")
    return make_groups(with_pools, train.row, RewardSettings())
