"""The artefacts of Lever-Plus, the system that icdsel replaces: its checkpoints, read and written.

Its checkpoints come in three forms: ``.pt`` (its RCE and GRPO epochs), ``_v2format.ckpt`` (its conversion of
those for inference) and Lightning's ``.ckpt`` (its supervised training), the last with whole CLIP models and
OmegaConf objects beside the selector. Parameter names come with and without the prefixes of the modules
around the selector, and from two ages. `selector_weights` makes one thing of all of them.
"""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from icdsel.policy import PointerConfig

__all__ = [
    "ConversionWarning",
    "StoredTensor",
    "drop_neutral_gate",
    "infer_config",
    "read_inert",
    "selector_weights",
    "unknown_parts",
    "v2_format",
]

_WRAPPER, _SELECTOR = "lever_lm.", "pointer_selector."
_NEIGHBOURS = ("sen_model.", "img_model.", "sen_adapter.", "img_adapter.")  # CLIP, in Lightning's checkpoints
_OLD_NAMES = {"cross_attn.": "cross_attn_layers.0.", "attn_norm.": "attn_norms.0."}  # before 2025-11-27
_GATE = "query_update_gate."
_OPEN_GATE = 30.0  # sigmoid(30) is 1 in float32: the state stays as it is


class ConversionWarning(UserWarning):
    """A converted checkpoint holds parts that Lever-Plus has no place for and would ignore."""


# --- names and shapes -------------------------------------------------------------------------------------


def selector_weights(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The selector's weights, under today's names, from what any of its checkpoints holds.

    Args:
        checkpoint: A mapping with `model_state_dict` or `state_dict`, or a bare state_dict.

    Returns:
        Parameter name → value. Nothing is known yet about the values; what belongs to other modules is left
        out, names that are no selector's are kept, to be reported.

    Raises:
        ValueError: There is no pointer selector in it.
    """
    state = checkpoint.get("model_state_dict", checkpoint.get("state_dict", checkpoint))
    if not isinstance(state, Mapping):
        raise ValueError(f"its state_dict is a {type(state).__name__}, not a dict")
    named = [(str(name).removeprefix(_WRAPPER), value) for name, value in state.items()]
    if any(name.startswith(_SELECTOR) for name, _ in named):
        named = [(name.removeprefix(_SELECTOR), value) for name, value in named if name.startswith(_SELECTOR)]
    else:
        named = [(name, value) for name, value in named if not name.startswith(_NEIGHBOURS)]
    weights: dict[str, Any] = {}
    for name, value in named:
        for old, new in _OLD_NAMES.items():
            if name.startswith(old):
                name = new + name.removeprefix(old)
        if name in weights:
            raise ValueError(f"it holds {name} twice, under its old and its new name")
        weights[name] = value
    if "query_proj.weight" not in weights:
        found = ", ".join(str(name) for name in list(state)[:5]) or "nothing"
        raise ValueError(f"it holds no pointer selector (no query_proj.weight; it begins with: {found})")
    return weights


def infer_config(weights: Mapping[str, Any]) -> PointerConfig:
    """The sizes of a network, from the shapes of its weights, where the checkpoint does not tell them.

    The heads cannot be seen in the shapes: they are taken to be 1, as in every run of Lever-Plus. The
    dropouts, which matter for further training alone, are the defaults.

    Raises:
        ValueError: The shapes are no pointer network's.
    """
    width = _shape(weights, "query_proj.weight")[0]
    layers = {name.split(".")[1] for name in weights if name.startswith("cross_attn_layers.")}
    return PointerConfig(
        d_model=_shape(weights, "input_proj.weight")[1] if "input_proj.weight" in weights else width,
        hidden_dim=width,
        num_layers=len(layers),
        gate=any(name.startswith(_GATE) for name in weights),
        tower=_shape(weights, "tower.up.weight")[0] if "tower.up.weight" in weights else 0,
    )


def _shape(weights: Mapping[str, Any], name: str) -> tuple[int, int]:
    shape = tuple(getattr(weights[name], "shape", ()))
    if len(shape) != 2:
        raise ValueError(f"{name} is no matrix")
    return int(shape[0]), int(shape[1])


# --- the v2 format ----------------------------------------------------------------------------------------


def v2_format(weights: Mapping[str, Tensor], config: PointerConfig, epoch: int, legacy_names: bool) -> dict[str, Any]:
    """What a ``_v2format.ckpt`` holds, and our `config` beside it.

    Lever-Plus's own conversion writes the parameter names of November 2025, which its current classes do not
    find: they run with a random cross-attention. Here the current names are the default. Its classes always
    have a gate (a random one, where the file has none), so a policy without one is given a gate that keeps
    the state as it is.

    Raises:
        ValueError: `legacy_names` is asked for with more than one layer, which the old classes did not have.
    """
    if legacy_names and config.num_layers > 1:
        raise ValueError(
            f"the legacy names know one cross-attention layer, this policy has {config.num_layers}; "
            "convert it without them"
        )
    written = dict(weights)
    if not config.gate:
        h = config.hidden_dim
        written[f"{_GATE}weight"] = torch.zeros(h, 2 * h)
        written[f"{_GATE}bias"] = torch.full((h,), _OPEN_GATE)
    state: dict[str, Tensor] = {}
    for name, value in written.items():
        for old, new in _OLD_NAMES.items():
            if legacy_names and name.startswith(new):
                name = old + name.removeprefix(new)
        state[_WRAPPER + _SELECTOR + name] = value
    return {
        "epoch": epoch,
        "global_step": 0,
        "pytorch-lightning_version": "2.0.0",
        "state_dict": state,
        "hyper_parameters": {"lr": 1e-4, "weight_decay": 1e-3, "warm_steps": 0.05},
        "config": asdict(config),
    }


def drop_neutral_gate(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a network without a gate, where `v2_format` has added one; a real gate is left in."""
    weight, bias = weights.get(f"{_GATE}weight"), weights.get(f"{_GATE}bias")
    if weight is None or bias is None or weight.any() or not (bias == _OPEN_GATE).all():
        return dict(weights)
    return {name: value for name, value in weights.items() if not name.startswith(_GATE)}


def unknown_parts(config: PointerConfig) -> list[str]:
    """The parts of a policy that Lever-Plus has no place for, in words."""
    parts = []
    if config.tower:
        parts.append(f"shared tower ({config.tower} wide)")
    if config.num_heads > 1:
        parts.append(f"{config.num_heads} attention heads")
    return parts


# --- reading pickles without running them -----------------------------------------------------------------

_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that still lies in its file: weights beside the selector's (CLIP) are never read."""

    record: str
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def load(self, archive: Path) -> Tensor:
        """Reads the tensor from the file that named it.

        Raises:
            Exception: What `zipfile` and `torch` raise on a damaged file, which is nearly anything.
        """
        with zipfile.ZipFile(archive) as file:
            content = bytearray(file.read(self.record))
        if not content:
            raise ValueError(f"the storage {self.record} is empty")
        values = torch.frombuffer(content, dtype=torch.uint8).view(self.dtype)
        reach = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        if min(self.offset, *self.shape, *self.stride, 0) < 0 or self.offset + reach >= len(values):
            raise ValueError(f"the tensor at {self.record} does not fit its storage")
        return values.as_strided(self.shape, self.stride, self.offset).clone()


class _Inert:
    """Stands for whatever a pickle names that is no tensor or plain container: it can only be ignored."""

    def __new__(cls, *_args: object, **_kwargs: object) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        pass

    def __call__(self, *_args: object, **_kwargs: object) -> "_Inert":
        return self

    def __setstate__(self, _state: object) -> None:
        pass

    def __setitem__(self, _key: object, _value: object) -> None:
        pass

    def append(self, _item: object) -> None:
        """Takes the place of `list.append`, which a pickle may call."""

    extend = add = append


@dataclass(frozen=True)
class _Storage:
    record: str
    dtype: torch.dtype


class _InertUnpickler(pickle.Unpickler):
    """Builds tensors' descriptions and plain containers; every other global becomes a placeholder.

    No module is imported and no global is called: what `find_class` returns is all that a pickle can reach.
    """

    def __init__(self, file: Any, prefix: str) -> None:
        super().__init__(file)
        self._prefix = prefix

    def find_class(self, module: str, name: str) -> Callable[..., Any] | torch.dtype:
        """The stand-in for a global."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return self._tensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return self._parameter
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        return type(f"Inert[{module}.{name}]", (_Inert,), {})

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage, as `torch.save` refers to it: ('storage', type, key, location, size)."""
        _, dtype, key, *_ = pid
        if not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise pickle.UnpicklingError(f"a storage of an unknown kind: {pid!r}")
        return _Storage(f"{self._prefix}data/{key}", dtype)

    # Bound methods: a pickle can set attributes of a function, but not of these.

    def _tensor(
        self, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
    ) -> StoredTensor:
        return StoredTensor(storage.record, storage.dtype, offset, tuple(size), tuple(stride))

    def _parameter(self, data: object, *_: object) -> object:
        return data


def read_inert(path: Path) -> object:
    """Reads a file of `torch.save` that holds more than tensors and plain values, and runs none of it.

    Args:
        path: A checkpoint in torch's zip format (torch 1.6 and later).

    Returns:
        Its content: plain containers and values, `StoredTensor` for tensors, placeholders for anything else.

    Raises:
        Exception: What `zipfile` and `pickle` raise on a damaged file, which is nearly anything.
    """
    with zipfile.ZipFile(path) as file:
        pickles = [name for name in file.namelist() if name.rsplit("/", 1)[-1] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError("no archive of torch.save (it has no data.pkl)")
        prefix = pickles[0].removesuffix("data.pkl")
        if f"{prefix}byteorder" in file.namelist() and file.read(f"{prefix}byteorder") != b"little":
            raise ValueError("written on a big-endian machine")
        with file.open(pickles[0]) as content:
            loaded: object = _InertUnpickler(content, prefix).load()
            return loaded
