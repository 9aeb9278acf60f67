"""The help of a command: `--help` shows the flags that people need first, `--help-all` shows all of them, grouped."""

import copy
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

_DATA = ("--dataset", "--data-dir", "--image-dir", "--model")
_QUERIES = ("--image", "--question", "--queries", "--split")
PLACES = ("--workers", "--ray-address", "--vlm-url")
"""The flags that say where the VLM runs."""

COMMON: dict[str, tuple[str, ...]] = {
    "gen-rl-data": (*_DATA, "--pool-size", "--queries", "--shard", "--output", *PLACES),
    "train": (*_DATA, "--pool-size", "--queries", "--grpo-epochs", "--freeze-backbone", "--run", "--rl-data", *PLACES),
    "convert": ("--run", "--output", "--legacy-names", "--dataset", "--model"),
    "infer": (*_DATA, "--pool-size", "--n", "--shots", "--selector", "--run", "--checkpoint", *PLACES),
    "compare": ("--dataset", "--model", "--pool-size", "--shots", "--n", "--reference", "--html", "--json"),
    "experiment": (*_DATA, "--n", "--shots", "--seeds", "--dry-run", "--reference", "--html", *PLACES),
    "runs": ("--dataset", "--results-dir", "--json"),
    "push": ("--private", "--licence", "--no-licence", "--revision", "--message", "--dry-run"),
    "export": (*_DATA, "--preset", "--results-dir", "--images", "--name", "--licence", "--overwrite"),
    "choose": (*_QUERIES, "--run", "--shots", "--selector", "--format", "--output"),
    "serve": ("--run", "--vlm-url", "--model", "--host", "--port", "--selector", "--shots", "--feedback"),
    "check": ("--dataset", "--data-dir", "--image-dir", "--images", "--json"),
    "bench": ("--model", "--device", "--engine", "--workers", "--queries", "--json"),
    "demo": ("--seeds", "--queries", "--n", "--results-dir", *PLACES),
}
"""The flags that `--help` shows, at most ten for each command and `PLACES`, in this order.

A command without an entry shows all."""

_OTHER_NAMES = {
    "--queries": "--n",
    "--n": "--queries",
    "--shots": "--pointer-shots",
    "--pointer-shots": "--shots",
    "--url": "--vlm-url",
}
"""What flags are called in other commands, or may be thought to be called; their spelling does not suggest it."""

_ALL = "icdsel.help_all"


def _show_all(context: typer.Context, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        context.meta[_ALL] = True
        typer.echo(context.get_help())
        raise typer.Exit


HelpAll = Annotated[
    bool, typer.Option("--help-all", help="Show every flag and exit.", is_eager=True, callback=_show_all)
]


class BriefHelp(TyperCommand):
    """A command whose `--help` shows only its common flags."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the arguments; of a flag that another command has, the message names the one that is meant."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # the class is typer's own, or click's, depending on the version
            meant = _OTHER_NAMES.get(str(getattr(error, "option_name", None)))
            if meant and hasattr(error, "possibilities") and any(meant in each.opts for each in self.params):
                error.possibilities = [meant]
            raise

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the help: with all flags if `--help-all` was given, else with the common ones."""
        parameters = self.params
        common = None if ctx.meta.get(_ALL) else COMMON.get(str(self.name))
        shown = [_as_shown(parameter) for parameter in parameters]
        try:
            self.params = shown if common is None else _common(shown, common)
            super().format_help(ctx, formatter)
        finally:
            self.params = parameters


def _common(parameters: list[Any], flags: tuple[str, ...]) -> list[Any]:
    """Arguments, the common options in the order of `flags`, and `--help-all`; in one panel."""
    arguments = [each for each in parameters if each.param_type_name == "argument"]
    options = {flag: each for each in parameters for flag in each.opts}
    shown = [options[flag] for flag in (*flags, "--help-all")]
    for option in shown:
        option.rich_help_panel = None
    return [*arguments, *shown]


def _as_shown(parameter: Any) -> Any:
    """A copy for the help: of a switch only the form that changes the default, so that columns stay narrow."""
    shown = copy.copy(parameter)
    if getattr(shown, "is_flag", False):
        shown.metavar = ""
        if shown.secondary_opts and "[default: true" in str(shown.help):
            shown.opts = shown.secondary_opts
        shown.secondary_opts = []
    return shown
