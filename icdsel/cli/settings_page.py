"""The page of all settings, made from the models: `python -m icdsel.cli.settings_page > docs/configuration.md`."""

from pydantic.fields import FieldInfo

from icdsel.cli.options import metavar
from icdsel.settings.names import flag
from icdsel.settings.presets import PRESETS, RECIPES
from icdsel.settings.tables import TABLES, TrainSettings

_HEAD = """# Settings

<!-- Made by `python -m icdsel.cli.settings_page`; a test compares it with the code. -->

A value comes from, in this order: the flag on the command line, the variable `ICDSEL_<TABLE>_<NAME>` (for
example `ICDSEL_TRAIN_BATCH_SIZE=4`), `icdsel.toml` in the working directory, the default. Unknown keys in
`icdsel.toml` are errors. Every result has its resolved settings beside it (`*.meta.json`, `run.json`).

```toml
# icdsel.toml
[data]
dataset = "okvqa"
data_dir = "/data/okvqa"
image_dir = "/data/coco"

[train]
grpo_epochs = 3
freeze_backbone = true
```
"""


def configuration_page() -> str:
    """The whole page, as Markdown."""
    parts = [_HEAD]
    for table, model in TABLES.items():
        parts.append(
            f"## [{table}]\n\n{model.__doc__}\n\n| setting | flag | values | default | meaning |\n|---|---|---|---|---|"
        )
        parts += [_row(name, field) for name, field in model.model_fields.items()]
        parts.append("")
    parts.append(
        "## Presets\n\nWhat `--preset lever-plus` sets, where it is not set by itself:\n\n"
        "| setting | value |\n|---|---|"
    )
    parts += [f"| `{t}.{name}` | `{v}` |" for t, values in PRESETS["lever-plus"].items() for name, v in values.items()]
    parts.append("")
    parts.append("## Recipes\n\nWhat `--recipe` decides, where it is not set by its own flag:\n")
    parts.append("| | " + " | ".join(RECIPES) + " |\n|---|" + "---|" * len(RECIPES))
    for name in next(iter(RECIPES.values())).model_dump():
        own = f"`{name}`" if name in TrainSettings.by_recipe else name.replace("_", " ")
        parts.append(f"| {own} | " + " | ".join(str(getattr(recipe, name)) for recipe in RECIPES.values()) + " |")
    return "\n".join(parts) + "\n"


def _row(name: str, field: FieldInfo) -> str:
    default = field.default
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    shown = "" if default is None else f"`{str(default).lower() if isinstance(default, bool) else default}`"
    meaning = (field.description or "").replace("\n", " ").replace("|", "\\|")
    values = metavar(field).replace("|", "\\|")
    return f"| `{name}` | `{flag(name, field)}` | {values} | {shown} | {meaning} |"


if __name__ == "__main__":
    print(configuration_page(), end="")
