"""The command line: flags become settings, a stage works, the result is printed. Does not import torch itself."""

from typing import Annotated

import typer

from icdsel import __version__
from icdsel.cli.commands.bench import bench
from icdsel.cli.commands.check import check
from icdsel.cli.commands.choose import choose
from icdsel.cli.commands.compare import compare
from icdsel.cli.commands.convert import convert
from icdsel.cli.commands.demo import demo
from icdsel.cli.commands.experiment import experiment
from icdsel.cli.commands.export import export
from icdsel.cli.commands.gen_rl_data import gen_rl_data
from icdsel.cli.commands.infer import infer
from icdsel.cli.commands.push import push
from icdsel.cli.commands.runs import runs
from icdsel.cli.commands.serve import serve
from icdsel.cli.commands.train import train
from icdsel.cli.help import BriefHelp
from icdsel.console import out

app = typer.Typer(
    name="icdsel",
    help="Learns which in-context demonstrations (ICDs) to show a vision-language model (VLM).\n\n"
    "Every command works on any machine, with the bundled world and a tiny VLM. To start, try `icdsel demo`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _before_any_command(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Runs before any command: the place to configure the process (logging, for example)."""
    if version:
        out.print(f"icdsel {__version__}")
        raise typer.Exit


# In the order in which `--help` lists them.
for command in (
    *(gen_rl_data, train, convert, infer, compare, experiment, runs),
    *(export, push, choose, serve, check, bench, demo),
):
    app.command(command.__name__.replace("_", "-"), cls=BriefHelp)(command)
