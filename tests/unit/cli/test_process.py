import os
import subprocess
import sys

from icdsel.cli.process import wait_without_spinning


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
