"""`icdsel train`."""

from typing import Annotated

import typer

from icdsel.cli.exits import finish
from icdsel.cli.options import Overwrite, RlData, with_settings
from icdsel.console import out
from icdsel.settings import Settings


@with_settings("data", "vlm", "proposals", "reward", "train", leave_out=["proposals.init", "proposals.query_split"])
def train(
    settings: Settings,
    run: Annotated[
        str | None, typer.Option("--run", help="Name of the run. [default: made from the changed settings]")
    ] = None,
    rl_data: RlData = None,
    overwrite: Overwrite = False,
) -> None:
    """Trains a policy with reward-weighted cross-entropy (RCE), then with GRPO if `--grpo-epochs` is set.

    Generates RL data first if there are none. Checkpoints and metrics go to `results/<dataset>/model_cpk/<run>/`.

    For example:

    ```
    icdsel train
    icdsel train --grpo-epochs 3 --freeze-backbone
    icdsel train --min-shots 0 --price 0.1
    icdsel train --tracker wandb,mlflow
    icdsel train --dataset okvqa --sampler rand --model qwen2.5-vl-3b --device cuda:0
    icdsel train --dataset okvqa --online --grpo-epochs 5 --ray-address head:6379
    icdsel train --dataset okvqa --rl-data hub:owner/name
    icdsel train --dataset okvqa --vlm-url http://localhost:8000/v1
    ```
    """
    from icdsel.artefacts.hub import local_rl_data
    from icdsel.stages.train import train as train_stage

    trained = train_stage(settings, run=run, rl_data_files=local_rl_data(rl_data or ()), overwrite=overwrite)
    out.print(f"{trained.folder}: recommended checkpoint {trained.checkpoint.name}")
    finish(settings, failed=trained.failed)
