"""The scripts and commands of docs/clusters.md: run with stand-ins for the programs of a cluster."""

import os
import re
import shlex
import socket
import subprocess
from pathlib import Path

import pytest
import typer

from icdsel.cli.app import app

PAGE = (Path(__file__).parents[2] / "docs/clusters.md").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
STAND_INS = {
    # Drops SLURM's options, and runs the rest.
    "srun": 'while [ "${1#--}" != "$1" ]; do echo "srun $1" >> "$TOLD"; shift; done; exec "$@"',
    "hostname": "echo 127.0.0.1",
    "ray": """echo "ray $*" >> "$TOLD"; test "$2" = --head || exit 0
exec python -c "import os, socket
server = socket.create_server(('127.0.0.1', int(os.environ['PORT']))); server.settimeout(20); server.accept()" """,
    "icdsel": 'echo "icdsel $*" >> "$TOLD"',
}


def told_by(script: str, folder: Path, **environment: str) -> list[str]:
    """What the stand-ins were called with when the script ran."""
    for name, content in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/bash\n{content}\n")
        (folder / name).chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
    told = folder / "told"
    told.touch()
    own = {"PATH": f"{folder}:{os.environ['PATH']}", "TOLD": str(told), "PORT": port} | environment
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{script.replace('6379', port)}\nwait"],
        env=os.environ | own,
        check=True,
        timeout=60,
    )
    return told.read_text().replace(port, "6379").splitlines()


def check_command(line: str) -> None:
    name, *words = shlex.split(line)[1:]
    group = typer.main.get_command(app)
    with group.make_context("icdsel", [name]) as context:
        command = group.get_command(context, name)  # type: ignore[attr-defined]
        command.make_context(name, words, parent=context)  # reads the flags, runs nothing


def test_there_are_the_scripts() -> None:
    assert len(SCRIPTS) == 3
    assert all(script.startswith("#!/bin/bash\n#SBATCH ") for script in SCRIPTS)


def test_one_node(tmp_path: Path) -> None:
    [line] = told_by(SCRIPTS[0], tmp_path)
    check_command(line)


def test_several_nodes_make_a_cluster_and_icdsel_waits_for_its_workers(tmp_path: Path) -> None:
    nodes, gpus = (int(re.search(f"{name}=([0-9]+)", SCRIPTS[1])[1]) for name in ("--nodes", "--gpus-per-node"))
    lines = told_by(SCRIPTS[1], tmp_path, SLURM_NNODES=str(nodes))
    started = [line for line in lines if line.startswith("ray ")]
    assert started[0] == "ray start --head --port=6379 --block"
    assert started[1] == "ray start --address=127.0.0.1:6379 --block"
    assert {"srun --nodes=1", "srun --nodelist=127.0.0.1", "srun --nodes=3", "srun --exclude=127.0.0.1"} <= set(lines)
    [line] = [line for line in lines if line.startswith("icdsel ")]
    assert f"--ray-address 127.0.0.1:6379 --workers {nodes * gpus} " in line
    check_command(line)


def test_a_task_of_an_array(tmp_path: Path) -> None:
    [line] = told_by(SCRIPTS[2], tmp_path, SLURM_ARRAY_TASK_ID="7")
    assert line.endswith("--shard 7/16")
    check_command(line)


RAY_LINES = re.findall(r"^(?:srun .*?)?(ray start [^#&\n]*)", PAGE.replace("\\\n", " "), re.MULTILINE)


@pytest.mark.parametrize("line", RAY_LINES)
def test_ray_knows_the_flags(line: str) -> None:
    from ray.scripts.scripts import start

    start.make_context("start", shlex.split(line)[2:])


def test_there_are_lines_for_ray() -> None:
    assert len(RAY_LINES) == 4
