import os
import subprocess
import sys

import pytest

from icdsel.cli.process import require_supported_system, wait_without_spinning


def test_idle_threads_sleep_unless_the_user_has_set_how_they_wait() -> None:
    plain: dict[str, str] = {}
    wait_without_spinning(plain)
    assert plain == {"GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
    for given in ({"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "30000", "KMP_BLOCKTIME": "200"}):
        environment = dict(given)
        wait_without_spinning(environment)
        assert environment == given


def test_the_program_sets_it_before_torch_is_loaded() -> None:
    code = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("KMP_BLOCKTIME"))
            os._exit(0)
sys.meta_path.insert(0, Watch())
sys.argv = ["icdsel", "gen-rl-data", "--queries", "2"]
from icdsel.__main__ import main
main()
"""
    names = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run([sys.executable, "-u", "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["0", "0"], done.stdout + done.stderr


def test_windows_is_rejected_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    require_supported_system("posix")
    with pytest.raises(SystemExit) as ended:
        require_supported_system("nt")
    said = capfd.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and "Linux and macOS" in said and "WSL" in said


def test_the_program_says_so_before_anything_else() -> None:
    code = "import icdsel.__main__ as program, os; os.name = 'nt'; program.main()"
    done = subprocess.run([sys.executable, "-c", code, "runs"], capture_output=True, text=True)
    assert done.returncode == 2 and "Linux and macOS" in done.stderr and "Traceback" not in done.stderr
