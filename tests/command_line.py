"""The command line as tests give commands to it, in this process."""

from typer.testing import CliRunner

from icdsel.cli.app import app


def icdsel(*words: object, code: int = 0) -> str:
    """Runs a command that ends with this exit code; all that it said, on both streams."""
    made = CliRunner().invoke(app, [str(word) for word in words])
    assert made.exit_code == code, made.output + str(made.exception)
    return made.output  # both streams
