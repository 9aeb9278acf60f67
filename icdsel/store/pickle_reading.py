"""Reads a pickle as plain data: nothing that it names is imported, nothing in it is called.

Why not `torch.load(weights_only=True)`: it runs no code either, but it is no protection from a hostile file. One can
end the process (a dict key of 250,000 nested tuples), keep it busy for ever (a key of 60 tuples, each holding the one
before twice) or take any amount of memory (`bytearray(2**40)` is an allowed call). torch 2.6 also reads beyond the end
of a storage that declares more bytes than the file holds. And valid weights are rejected if the file also names
anything in the module `os`; this reader puts a placeholder there.
"""

import pickletools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Foreign", "read_pickle"]

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
_TO_MARK = {"TUPLE", "APPENDS", "SETITEMS", "POP_MARK"}  # opcodes that take all values down to the last mark
_COUNTS = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2, "BUILD": 1, "BINPERSID": 1, "POP": 1}
_COUNTS |= {"REDUCE": 2, "NEWOBJ": 2, "STACK_GLOBAL": 2}  # how many values the other opcodes take


@dataclass(frozen=True)
class Foreign:
    """Placeholder for a class, a function or an object that is not plain data: it can only be ignored."""

    name: str


def read_pickle(
    content: bytes, known: Mapping[str, Callable[..., object] | None], persistent: Callable[[object], object]
) -> tuple[object, set[str]]:
    """Reads a pickle of protocol 2 (torch's default), or one of protocol 4 that holds nothing but plain data.

    Args:
        content: The pickle.
        known: The expected names ("module.name") in it, each with the function to call in its place, or None.
            A call without such a function results in a `Foreign`.
        persistent: Turns a persistent id into the object that it refers to.

    Returns:
        The value: None, bools, numbers, strings, lists, tuples, dicts (with plain keys only), results of the
        functions of `known` and of `persistent`, and `Foreign` for anything else. And the names that are not `known`.

    Raises:
        Exception: The pickle is damaged; nearly any class.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}
    foreign: set[str] = set()
    for opcode, argument, _ in pickletools.genops(content):  # which also checks that the bytes of all arguments exist
        taken = _take(stack, marks.pop() if opcode.name in _TO_MARK else len(stack) - _COUNTS.get(opcode.name, 0))
        match opcode.name:
            case "PROTO" | "FRAME" | "STOP" | "POP" | "POP_MARK" | "BUILD":  # BUILD sets the state of an object
                pass
            case "MARK":
                marks.append(len(stack))
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(taken))
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "APPEND" | "APPENDS":
                if isinstance(stack[-1], list):
                    stack[-1].extend(taken)
            case "SETITEM" | "SETITEMS":
                if isinstance(stack[-1], dict):
                    stack[-1].update(_with_plain_keys(taken))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL" | "STACK_GLOBAL":
                name = argument.replace(" ", ".", 1) if argument else ".".join(taken)
                if name not in known:
                    foreign.add(name)
                stack.append(Foreign(name))
            case "REDUCE" | "NEWOBJ":
                function, arguments = taken
                origin = function if isinstance(function, Foreign) else Foreign("an object")
                call = known.get(origin.name)
                stack.append(call(*arguments) if call and isinstance(arguments, tuple) else origin)
            case "BINPERSID":
                stack.append(persistent(*taken))
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case name if name in _VALUES:
                stack.append(argument)
            case name:
                raise ValueError(f"its pickle has the opcode {name}, which torch.save does not write by default")
    return stack.pop(), foreign


def _take(stack: list[Any], start: int) -> list[Any]:
    """Removes the values from `start` to the top of the stack."""
    if start < 0:
        raise ValueError("its pickle takes more values than it has")
    taken = stack[start:]
    del stack[start:]
    return taken


def _with_plain_keys(items: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """The pairs whose keys hash fast: no nested tuples, and no large integers, many of which share a hash."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        if key is None or isinstance(key, str | float) or (isinstance(key, int) and abs(key) < 2**63):
            yield key, value
