"""The selector that uses a trained policy."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from icdsel.artefacts.bundle.manifest import POLICY as POLICY_OF_BUNDLE
from icdsel.artefacts.run_folder import shown_name
from icdsel.records import Pointer
from icdsel.selection.selector import Selector
from icdsel.settings.loading import Settings

if TYPE_CHECKING:
    from icdsel.selection.context import Context


class Policy(Selector):
    """The pointer network of a checkpoint."""

    name = "policy"
    needs_policy = True
    can_stop = True

    def choose(self, context: "Context", shots: int) -> list[Pointer | None]:
        """The greedy choice, in the order in which the network chooses."""
        return context.pointers(row[:shots] for row in context.greedy)

    def choose_auto(self, context: "Context", offset: float) -> list[Pointer | None]:
        """The greedy choice up to where the network stops."""
        return context.pointers(context.decided(offset))

    def row_name(self, settings: Settings, policy: Path | None) -> str:  # noqa: ARG002
        """`policy-<run>-<checkpoint>`, or `policy-<folder>` for the policy of a bundle."""
        return self.name if policy is None else self._row(policy)

    def row_of(self, run: str, checkpoint: str) -> str:
        """What the row of a run's checkpoint is called, such as `policy-demo-grpo_epoch3`."""
        return f"{self.name}-{run}-{checkpoint}"

    def short_name(self, row_name: str, policy: Path | None) -> str:
        """`policy <run>`, with the run's number if its name is long; names that users gave stay."""
        if policy is None or row_name != self._row(policy):
            return row_name
        return f"{self.name} {shown_name(policy.absolute().parent)}"

    def _row(self, policy: Path) -> str:
        folder = policy.absolute().parent.name
        return f"{self.name}-{folder}" if policy.name == POLICY_OF_BUNDLE else self.row_of(folder, policy.stem)

    def without_seed(self, row_name: str) -> str:
        """The row's name without the run's training seed."""
        match = self._seeded(row_name)
        return f"{match[1]}{match[3]}" if match else row_name

    def without_epoch(self, row_name: str) -> str:
        """The row's name with the phase alone, `policy-<run>-grpo`."""
        return re.sub(r"(-(?:warm|rce|grpo))_epoch\d+$", r"\1", row_name)

    def seed_of(self, row_name: str) -> str:
        """The run's training seed; empty for the default, which is not in the name."""
        match = self._seeded(row_name)
        return match[2] if match else ""

    def _seeded(self, row_name: str) -> re.Match[str] | None:
        return re.fullmatch(rf"({self.name}-.+)_train-seed-(\d+)(.*)", row_name)
