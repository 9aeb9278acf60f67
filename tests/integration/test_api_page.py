"""The snippets of docs/api.md run, one after the other, in a folder that holds a bundle and a picture."""

import re
import subprocess
import sys
from pathlib import Path

from bundles import write_small_bundle

import icdsel
from icdsel.stages.session import Session

PAGE = (Path(__file__).parents[2] / "docs/api.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_the_snippets_run_as_one_program(tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text("\n".join(SNIPPETS), encoding="utf-8")
    folder = tmp_path / "empty"
    folder.mkdir()
    session: Session = write_small_bundle(folder / "my-bundle", tmp_path / "work")
    (folder / "photo.png").write_bytes(session.split("validation")[0].image.read_bytes())
    done = subprocess.run([sys.executable, program], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    printed = done.stdout.splitlines()
    assert "0.6" in printed
    assert "torch.Size([40, 2]) torch.Size([40])" in printed
    chosen, average = map(float, re.findall(r"-?\d\.\d\d", printed[-1]))
    assert chosen > average + 0.2  # the policy has learnt something
    written = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert written == {"my-bundle", "photo.png", "rl_data.jsonl", "rce_epoch1.pt", "rce_epoch1_v2format.ckpt"}


def test_every_public_name_is_shown_in_a_snippet():
    shown = set(re.findall(r"\w+", "".join(SNIPPETS)))
    assert set(icdsel.__all__) - {"__version__"} <= shown
