"""Bundles of policies that see other things than one vector for each example choose as `icdsel infer` does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from bundles import save_random_policy, small_settings
from tiny_clip import save_tiny_clip

from icdsel.artefacts.bundle.manifest import read_manifest
from icdsel.artefacts.bundle.writing import write_bundle
from icdsel.choosing.selector import Selector
from icdsel.errors import BundleError
from icdsel.selection import POLICY
from icdsel.stages.bundle_of_run import bundle_of
from icdsel.stages.selection_context import fingerprints_of, open_context
from icdsel.stages.session import Session


def require_equal_choices(folder: Path, session: Session, network: dict[str, Any], **load: Any) -> Selector:
    """Exports a policy, loads it, and compares its choices with those of the inference stage."""
    policy = save_random_policy(folder / "rce_epoch1.pt", session, **network)
    write_bundle(bundle_of(session, policy, "small"), folder / "bundle", "full")
    queries = list(session.split("validation"))
    found = session.queries(queries, "validation", 2)
    context = open_context(session, found, policy, fingerprints_of(session, session.settings, policy))
    expected = [list(pointer or ()) for pointer in POLICY.choose(context, 2)]
    selector = Selector.load(folder / "bundle", **load)
    assert torch.equal(selector.bundle.table, context.train_embeddings)
    chosen = [[icd.question_id for icd in choice.icds] for choice in selector.choose_all(queries, 2)]
    assert chosen == expected and len({tuple(pointer) for pointer in chosen}) > 1
    return selector


def test_a_question_gate(tmp_path: Path) -> None:
    session = Session(small_settings(tmp_path, embed="separate"))
    require_equal_choices(tmp_path, session, {"question_gate": 8, "num_layers": 0, "update": "residual"})


def test_answers_of_candidates(tmp_path: Path) -> None:
    session = Session(small_settings(tmp_path))
    width = session.candidates(True).shape[1] - session.embeddings.shape[1]
    require_equal_choices(tmp_path, session, {"answer_dim": width, "tower": 8})


def test_an_encoder_in_a_folder_of_another_machine(tmp_path: Path) -> None:
    clip = save_tiny_clip(tmp_path / "clips/mine")
    session = Session(small_settings(tmp_path, encoder=str(clip)))
    selector = require_equal_choices(tmp_path, session, {}, encoder=str(clip))
    assert "nearest-both" in selector.names
    manifest = read_manifest(tmp_path / "bundle")
    assert manifest.encoder.name == "mine" and not manifest.encoder.centred
    with pytest.raises(BundleError, match=r"was a folder of the machine.*--encoder FOLDER"):
        Selector.load(tmp_path / "bundle")
    other = save_tiny_clip(tmp_path / "clips/other")
    (other / "config.json").write_text((other / "config.json").read_text().replace("quick_gelu", "gelu"))
    with pytest.raises(BundleError, match="were embedded by another encoder"):
        Selector.load(tmp_path / "bundle", encoder=str(other))


def test_embeddings_of_ones_own_and_another_encoder_for_neighbours(tmp_path: Path) -> None:
    clip = save_tiny_clip(tmp_path / "clip")
    plain = Session(small_settings(tmp_path, encoder=str(clip)))
    generator = torch.Generator().manual_seed(3)
    own = torch.nn.functional.normalize(torch.randn(plain.embeddings.shape, generator=generator), dim=-1)
    torch.save(own, tmp_path / "own.pt")
    given = {"encoder": str(clip), "sampler_encoder": "vlm", "train_embeddings": tmp_path / "own.pt"}
    session = Session(small_settings(tmp_path, **given))
    selector = require_equal_choices(tmp_path, session, {}, encoder=str(clip))
    assert selector.names == ("policy", "zero-shot", "random", "balanced")
