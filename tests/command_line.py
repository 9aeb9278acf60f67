"""Runs commands of the command line in this process."""

from typer.testing import CliRunner

from icdsel.cli.app import app


def icdsel(*arguments: object, code: int = 0) -> str:
    """Runs a command, checks its exit code, and returns its output on both streams."""
    made = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert made.exit_code == code, made.output + str(made.exception)
    return made.output
