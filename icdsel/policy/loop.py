"""The training loop: reward-weighted cross-entropy, then GRPO. It takes tensors and produces a trained network.

There is no DataLoader and no host synchronisation inside an epoch: embeddings and groups are on the device, each
step gathers its rows, and metrics stay tensors until the epoch ends.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from icdsel.errors import RunError
from icdsel.policy.config import PointerConfig
from icdsel.policy.groups import Groups
from icdsel.policy.losses import adapt_kl_beta, grpo_loss, rce_loss, rce_temperature
from icdsel.policy.measures import evaluate, log_probs
from icdsel.policy.network import PointerNetwork
from icdsel.settings.presets import RECIPES
from icdsel.settings.tables import TrainSettings

PHASES = ("warm", "rce", "grpo")
"""The phases of a training, in order."""
MAX_GRAD_NORM = 1.0
LOW_COVERAGE = 0.05
"""RCE over the group looks beyond the scored pointers if these hold a smaller share of a pool's candidates."""
FROZEN = ("input_proj", "answer_proj", "tower", "query_tower", "question_gate", "query_proj", "cand_proj")
ALL = 1_000_000_000  # the number of completed epochs reported for a phase that was finished before the resumed one

Rollouts = Callable[[PointerNetwork, Tensor, int], tuple[Groups, dict[str, float]]]
"""Maps the policy, the table of embeddings and the epoch number to the epoch's groups and the sampling metrics."""


@dataclass(frozen=True)
class Epoch:
    """The result of an epoch: its number (from 0) within its phase, metrics, and the state to resume from.

    `kl_beta` is the weight of the KL term after the epoch; `draws` holds the states of the random generators and, if
    GRPO needs it, the policy that its ratios are relative to.
    """

    phase: str
    number: int
    metrics: dict[str, float]
    kl_beta: float
    optimizer: torch.optim.Optimizer
    draws: dict[str, Any]


@dataclass(frozen=True)
class Resume:
    """The point from which an interrupted training resumes: the last complete epoch, and the state after it.

    `optimizer` is a state_dict; `draws` is `Epoch.draws`.
    """

    phase: str
    epoch: int
    kl_beta: float
    optimizer: Mapping[str, Any] | None
    draws: Mapping[str, Any]


def train_policy(
    network: PointerNetwork,
    table: Tensor,
    train: Groups,
    validation: Groups,
    settings: TrainSettings,
    *,
    seed: int,
    on_epoch: Callable[[Epoch], None],
    on_step: Callable[[int], None],
    shuffle: bool = True,
    warm: Groups | None = None,
    rollouts: Rollouts | None = None,
    resume: Resume | None = None,
) -> None:
    """Trains `network` in place.

    Args:
        network: The policy, on the device of `table`.
        table: Embeddings (N, d) that the groups' rows refer to; (N, d + a) if the network sees answers.
        train: The queries to learn from.
        validation: The queries to measure on after every epoch.
        settings: Epochs, learning rates and the recipe.
        seed: Determines the order of the queries, and dropout.
        on_epoch: Called with the result of every epoch.
        on_step: Called after every step with its number of queries.
        shuffle: Whether the order of the queries changes from epoch to epoch.
        warm: Pointers to imitate first, for `settings.warm_epochs`; their rewards are ignored.
        rollouts: Returns, for each epoch of GRPO, the queries of `train` with additional pointers (online GRPO).
        resume: The state of an interrupted training; `network` has the weights of its last epoch. The result is the
            same as without the interruption.

    Raises:
        RunError: `resume` is damaged.
    """
    torch.manual_seed(seed)  # dropout
    order = torch.Generator().manual_seed(seed)

    def batches(groups: Groups) -> Iterator[tuple[Tensor, Groups]]:
        rows = torch.randperm(len(groups), generator=order) if shuffle else torch.arange(len(groups))
        for chunk in rows.to(table.device).split(settings.batch_size):
            yield chunk, groups[chunk]
            on_step(len(chunk))

    start = copy.deepcopy(network)
    if resume is not None:
        try:
            _set_draws(resume.draws, order)
            start.load_state_dict(resume.draws.get("start", start.state_dict()))
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise _damaged(type(error).__name__) from None
    loop = _Loop(network, start, table, train, validation, settings, batches, on_epoch, rollouts, order, resume)
    if warm is not None:
        _warm_up(loop, warm)
    if not loop.done("rce"):
        start.load_state_dict(network.state_dict())
    _rce(loop)
    if settings.grpo_epochs:
        if RECIPES[settings.recipe].old_log_probs == "before-grpo" and not loop.done("grpo"):
            start.load_state_dict(network.state_dict())
        _grpo(loop)


@dataclass(frozen=True)
class _Loop:
    """The state that all phases share; `start` is the policy that GRPO's ratios are relative to."""

    network: PointerNetwork
    start: PointerNetwork
    table: Tensor
    train: Groups
    validation: Groups
    settings: TrainSettings
    batches: Callable[[Groups], Iterator[tuple[Tensor, Groups]]]
    on_epoch: Callable[[Epoch], None]
    rollouts: Rollouts | None
    order: torch.Generator
    resume: Resume | None

    def done(self, phase: str) -> int:
        """The number of epochs of a phase that were complete before the interruption; `ALL` if the phase was."""
        if self.resume is None:
            return 0
        reached = PHASES.index(self.resume.phase) - PHASES.index(phase)
        return self.resume.epoch + 1 if reached == 0 else ALL if reached > 0 else 0

    def optimizer(self, phase: str, parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
        """A new optimizer for a phase; with the saved state if the training was interrupted in this phase."""
        trained = list(parameters)
        optimizer = torch.optim.AdamW(trained, lr=lr)
        if self.resume is not None and self.resume.phase == phase and self.resume.optimizer is not None:
            state = self.resume.optimizer.get("state")
            if not _fits(state, trained):
                raise _damaged("its optimizer belongs to another network")
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        return optimizer

    def end(
        self, phase: str, number: int, metrics: dict[str, float], beta: float, optimizer: torch.optim.Optimizer
    ) -> None:
        """Reports the result of an epoch."""
        draws: dict[str, Any] = {"rng": torch.get_rng_state(), "order": self.order.get_state()}
        if self.table.is_cuda:
            draws["cuda"] = torch.cuda.get_rng_state(self.table.device)
        if self.settings.grpo_epochs:
            draws["start"] = self.start.state_dict()
        self.on_epoch(Epoch(phase, number, metrics, beta, optimizer, draws))


def _fits(state: object, parameters: Sequence[Tensor]) -> bool:
    """Whether `state` is a valid AdamW state for these parameters."""
    kept = ("step", "exp_avg", "exp_avg_sq")
    return isinstance(state, dict) and all(
        type(place) is int
        and 0 <= place < len(parameters)
        and isinstance(own, dict)
        and own.keys() == set(kept)
        and all(isinstance(value, Tensor) and value.dtype == torch.float32 for value in own.values())
        and [own[name].shape for name in kept] == [(), parameters[place].shape, parameters[place].shape]
        and 0 <= float(own["step"]) < 2**53
        for place, own in state.items()
    )


def _damaged(why: str) -> RunError:
    return RunError(
        f"the state of the interrupted training is damaged ({why}): move its run folder elsewhere, "
        f"and run the same command again"
    )


def _set_draws(draws: Mapping[str, Any], order: torch.Generator) -> None:
    torch.set_rng_state(draws["rng"])
    order.set_state(draws["order"])
    if "cuda" in draws and torch.cuda.is_available():
        torch.cuda.set_rng_state(draws["cuda"])


def _warm_up(loop: _Loop, warm: Groups) -> None:
    """Trains on every pointer of `warm` with equal weights: Lever-Plus's supervised training, corrected.

    Lever-Plus uses the parity of indices as labels, over a pool that consists of only the two ICDs.
    """
    _weighted_cross_entropy(
        loop,
        "warm",
        warm,
        loop.settings.warm_epochs,
        lambda batch: batch.raw * 0,  # NaN stays NaN
        over="pool",
    )


def _rce(loop: _Loop) -> None:
    normalized, over = loop.settings.rce_normalized_reward, loop.settings.rce_over
    assert over is not None  # set by the recipe
    _weighted_cross_entropy(
        loop,
        "rce",
        loop.train,
        loop.settings.rce_epochs,
        lambda batch: batch.normalized if normalized else batch.raw,
        over=over,
        pool_weight=loop.settings.rce_pool_weight if loop.train.coverage < LOW_COVERAGE else 0.0,
    )


def _weighted_cross_entropy(
    loop: _Loop,
    phase: str,
    groups: Groups,
    epochs: int,
    rewards_of: Callable[[Groups], Tensor],
    over: Literal["pool", "group", "best"],
    pool_weight: float = 0.0,
) -> None:
    """Trains with RCE on `groups`. Equal rewards give all pointers of a query the same weight at any temperature."""
    network, settings = loop.network, loop.settings
    optimizer = loop.optimizer(phase, network.parameters(), settings.rce_lr)
    steps = -(-len(groups) // settings.batch_size)
    step, total = loop.done(phase) * steps, epochs * steps
    for number in range(loop.done(phase), epochs):
        network.train()
        losses = []
        for _, full in loop.batches(groups):
            batch = full.narrowed(settings.negatives, loop.order) if settings.negatives else full
            tau = rce_temperature(step, total, settings.rce_temp_start, settings.rce_temp_end)
            logits = network.steps(loop.table[batch.query], loop.table[batch.pool], batch.pointers, batch.mask)
            loss = rce_loss(
                logits.choice,
                batch.pointers,
                rewards_of(batch),
                tau,
                settings.label_smoothing,
                over,
                pool_weight,
                logits.stop if phase != "warm" else None,  # beams that are imitated say nothing about stopping
            )
            optimizer.param_groups[0]["lr"] = settings.rce_lr * (1 + (settings.rce_lr_end - 1) * step / total)
            losses.append(_update(loss, optimizer, network))
            step += 1
        metrics = {f"{phase}_loss": _mean(losses)} | evaluate(network, loop.table, loop.validation)
        loop.end(phase, number, metrics, settings.kl_beta, optimizer)


def _grpo(loop: _Loop) -> None:
    """Trains with GRPO on the pointers of the training queries.

    The ratio and the KL term are relative to `loop.start`, the policy before RCE or before GRPO. In online GRPO the
    ratio is relative to the policy that the epoch's samples were drawn from.
    """
    network, settings, recipe = loop.network, loop.settings, RECIPES[loop.settings.recipe]
    groups = loop.train
    old = reference = log_probs(loop.start, loop.table, groups)  # (Q, P)
    trained = [
        parameter
        for name, parameter in network.named_parameters()
        if not (settings.freeze_backbone and name.startswith(FROZEN))
    ]
    frozen = set(network.parameters()) - set(trained)
    for parameter in frozen:
        parameter.requires_grad_(False)
    optimizer = loop.optimizer("grpo", trained, settings.grpo_lr)
    done = loop.done("grpo")
    beta = loop.resume.kl_beta if done and loop.resume else settings.kl_beta
    for number in range(done, settings.grpo_epochs):
        sampled: dict[str, float] = {}
        if loop.rollouts:
            groups, sampled = loop.rollouts(network, loop.table, number)
            old, reference = (log_probs(policy, loop.table, groups) for policy in (network, loop.start))
        network.train(recipe.dropout_in_ratio)
        # As in Lever-Plus: only the best 3 pointers in the first epoch, then the best 5.
        top_k = None if recipe.advantage_over == "group" else (3 if number < 1 else 5)
        reports: list[dict[str, Tensor]] = []
        for rows, batch in loop.batches(groups):
            new = network.log_prob(loop.table[batch.query], loop.table[batch.pool], batch.pointers, batch.mask)
            loss, report = grpo_loss(
                new,
                old[rows],
                batch.normalized,
                clip_epsilon=settings.clip_epsilon,
                kl_beta=beta,
                top_k=top_k,
                kl=recipe.kl,
                ref_log_prob=reference[rows],
                raw_rewards=batch.raw if recipe.std_floor else None,
                by_old_policy=loop.rollouts is not None,
            )
            reports.append(report | {"grpo_loss": _update(loss, optimizer, network)})
            if recipe.adapt_beta == "batch":
                beta = adapt_kl_beta(beta, float(report["kl"]))
        metrics = {name: _mean([report[name] for report in reports]) for name in reports[0]}
        if recipe.adapt_beta == "epoch":
            metrics["kl"] = _drift(loop, groups, reference)
            beta = adapt_kl_beta(beta, metrics["kl"]) if beta else 0.0  # 0 switches the KL term off
        metrics |= evaluate(network, loop.table, loop.validation) | sampled
        loop.end("grpo", number, metrics, beta, optimizer)
    for parameter in frozen:
        parameter.requires_grad_(True)


def _update(loss: Tensor, optimizer: torch.optim.Optimizer, network: PointerNetwork) -> Tensor:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for name, parameter in network.named_parameters():
        if name.endswith("in_proj_bias") and parameter.grad is not None:
            # The key bias adds the same constant to all attention scores of a query, so its true gradient is 0. Adam
            # would turn the rounding errors in the computed gradient into full steps.
            parameter.grad.chunk(3)[1].zero_()
    clip_grad_norm_([p for p in network.parameters() if p.requires_grad], MAX_GRAD_NORM)
    optimizer.step()
    return loss.detach()


def _mean(values: list[Tensor]) -> float:
    return float(torch.stack(values).cpu().double().mean())  # Apple's GPUs have no float64


def _drift(loop: _Loop, groups: Groups, reference: Tensor) -> float:
    """Computes the KL term over all training queries, without dropout."""
    new = log_probs(loop.network, loop.table, groups)
    kl = RECIPES[loop.settings.recipe].kl
    return float(grpo_loss(new, reference, groups.normalized, kl_beta=1.0, kl=kl)[1]["kl"])


def plain(metrics: dict[str, Any]) -> dict[str, float]:
    """Rounds metrics to six significant digits, for files."""
    return {name: float(f"{value:.6g}") for name, value in metrics.items()}


def make_network(
    settings: TrainSettings, d_model: int, seed: int, answer_dim: int = 0, stop: bool = False
) -> PointerNetwork:
    """Creates a network with new weights from the training settings; the rest is as in `PointerConfig`."""
    config = PointerConfig(
        d_model=d_model,
        hidden_dim=settings.hidden_dim,
        num_layers=settings.num_layers,
        num_heads=settings.num_heads,
        gate=settings.gate,
        dropout=settings.dropout,
        attn_dropout=settings.attn_dropout,
        tower=settings.tower,
        answer_dim=answer_dim,
        update=settings.update,
        query_tower=settings.query_tower,
        question_gate=settings.question_gate,
        stop=stop,
    )
    torch.manual_seed(seed)
    return PointerNetwork(config)
