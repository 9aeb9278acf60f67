import ast
import subprocess
import sys
from pathlib import Path

import pytest

import icdsel


def test_importing_the_package_loads_no_torch_and_no_numpy() -> None:
    script = "import sys, icdsel; dir(icdsel); assert not {'torch', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_all_names_exist_and_are_listed() -> None:
    assert set(icdsel.__all__) <= set(dir(icdsel))
    for name in icdsel.__all__:
        assert getattr(icdsel, name).__class__.__name__ in ("function", "type", "str")


def test_type_checkers_see_the_names_that_exist_at_runtime() -> None:
    package = ast.parse(Path(icdsel.__file__).read_text(encoding="utf-8"))
    [checked] = [node for node in package.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name)]
    for node in checked.body:
        assert isinstance(node, ast.ImportFrom) and node.module is not None
        for alias in node.names:
            assert getattr(icdsel, alias.name) is getattr(sys.modules[node.module], alias.name)
    assert {alias.name for node in checked.body for alias in node.names} == set(icdsel.__all__) - {"__version__"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'icdsel' has no attribute 'unknown'"):
        _ = icdsel.unknown
