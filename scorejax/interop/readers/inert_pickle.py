# SPDX-License-Identifier: Apache-2.0
"""Reads pickles as data, by a machine that builds lists, dicts and records and calls nothing else.

A pickle is a program for a stack machine, and Python's own machine calls whatever the program
names. This one treats names as text. A name in `constructors` turns its arguments into a value by a
function of ours; a name with a prefix in `records` becomes a `Record`; any other name ends the
reading. No module is imported, no attribute is set, and the result grows no faster than the input.
"""

import pickletools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

MAX_OPERATIONS = 2_000_000
"""Each operation takes at least a byte and makes at most some 200; checkpoints have about 10^5."""


class Global(NamedTuple):
    """The name of a class or function, `module.name`, as text that cannot be called."""

    name: str


class Record:
    """An object of a foreign class: its name, arguments, state and entries."""

    def __init__(self, name: str, args: tuple = ()) -> None:
        self.name, self.args, self.state = name, args, None
        self.entries: dict[Any, Any] = {}


Constructors = Mapping[str, Callable[..., Any]]


def read_pickle(
    stream: BinaryIO,
    constructors: Constructors,
    *,
    records: tuple[str, ...] = (),
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Reads one pickle from the stream and returns its value; the stream stops after it.

    `persistent` turns the identifier of an object outside the pickle into its value.
    Raises: ValueError with one line for an unknown name, an operation that no checkpoint needs, or
    a damaged pickle.
    """
    machine = _Machine(constructors, records, persistent)
    try:
        for count, (operation, argument, _) in enumerate(_operations(stream)):
            if count == MAX_OPERATIONS:
                raise ValueError(f"a pickle of more than {MAX_OPERATIONS} operations")
            machine.perform(operation.name, argument)
    except (IndexError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"a damaged pickle ({_one_line(error)})") from None
    return machine.result


def _operations(stream: BinaryIO) -> Iterator[tuple]:
    try:
        yield from pickletools.genops(stream)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"a truncated or damaged pickle ({_one_line(error)})") from None


class _Machine:
    """The stack, its marks and the memo of a pickle while it is read."""

    def __init__(self, constructors, records, persistent) -> None:
        self._constructors, self._records = constructors, records
        self._persistent = persistent
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self.result: Any = None

    def perform(self, operation: str, argument: Any) -> None:
        if operation in _LITERALS:
            self._stack.append(argument)
        elif operation in _CONSTANTS:
            self._stack.append(_CONSTANTS[operation]())
        elif operation in _METHODS:
            _METHODS[operation](self, argument)
        elif operation not in ("PROTO", "FRAME"):
            raise ValueError(f"the pickle operation {operation}, which no checkpoint needs")

    def _top(self) -> Any:
        if self._marks and self._marks[-1] == len(self._stack):
            raise IndexError("nothing above the mark")
        return self._stack[-1]

    def _pop(self) -> Any:
        top = self._top()
        self._stack.pop()
        return top

    def _pop_to_mark(self) -> list[Any]:
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _mark(self, _: None) -> None:
        self._marks.append(len(self._stack))

    def _stop(self, _: None) -> None:
        self.result = self._pop()

    def _drop(self, _: None) -> None:
        self._pop()

    def _drop_to_mark(self, _: None) -> None:
        self._pop_to_mark()

    def _duplicate(self, _: None) -> None:
        self._stack.append(self._top())

    def _list(self, _: None) -> None:
        self._stack.append(self._pop_to_mark())

    def _tuple(self, _: None) -> None:
        self._stack.append(tuple(self._pop_to_mark()))

    def _tuple_of(self, num: int) -> None:
        items = [self._pop() for _ in range(num)]
        self._stack.append(tuple(reversed(items)))

    def _dict(self, _: None) -> None:
        items = self._pop_to_mark()
        self._stack.append({})
        self._set(items)

    def _append(self, _: None) -> None:
        item = self._pop()
        self._extend([item])

    def _appends(self, _: None) -> None:
        self._extend(self._pop_to_mark())

    def _extend(self, items: list[Any]) -> None:
        _require_type(self._top(), list).extend(items)

    def _set_item(self, _: None) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    def _set_items(self, _: None) -> None:
        self._set(self._pop_to_mark())

    def _set(self, items: list[Any]) -> None:
        target = self._top()
        entries = target.entries if isinstance(target, Record) else _require_type(target, dict)
        if len(items) % 2:
            raise IndexError("a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            entries[require_plain(key)] = value

    def _add_items(self, _: None) -> None:
        items = self._pop_to_mark()
        _require_type(self._top(), set).update(map(require_plain, items))

    def _frozen_set(self, _: None) -> None:
        self._stack.append(set(map(require_plain, self._pop_to_mark())))

    def _put(self, index: int) -> None:
        self._memo[index] = self._top()

    def _memoize(self, _: None) -> None:
        self._memo[len(self._memo)] = self._top()

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _global(self, name: str) -> None:
        self._stack.append(Global(name.replace(" ", ".")))

    def _stack_global(self, _: None) -> None:
        name, module = self._pop(), self._pop()
        self._stack.append(Global(f"{_require_type(module, str)}.{_require_type(name, str)}"))

    def _call(self, _: None) -> None:
        """Makes the object that REDUCE or NEWOBJ asks for, from a name and its arguments."""
        args, function = _require_type(self._pop(), tuple), _require_type(self._pop(), Global)
        if function.name in self._constructors:
            self._stack.append(self._constructors[function.name](*args))
        elif self._records and function.name.startswith(self._records):
            self._stack.append(Record(function.name, args))
        else:
            raise ValueError(f"the name {function.name[:80]!r}, which no checkpoint needs")

    def _build(self, _: None) -> None:
        """Sets the state of a record; the attributes of a dict are dropped."""
        state, target = self._pop(), self._top()
        if isinstance(target, Record):
            target.state = state
        else:
            _require_type(target, dict)

    def _external(self, _: None) -> None:
        identifier = self._pop()
        if self._persistent is None:
            raise ValueError("a reference to something outside the pickle")
        self._stack.append(self._persistent(identifier))


def _require_type(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} in place of {kind.__name__}")
    return value


def require_plain(key: Any) -> Any:
    """The key, checked to be text or a number: hashing nested tuples could take unbounded time.

    Raises: TypeError for a key of another type.
    """
    if not isinstance(key, str | bytes | int | float | None):
        raise TypeError(f"a key of type {type(key).__name__}")
    return key


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": set,
}  # fmt: skip
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE",
    "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_METHODS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine._mark, "STOP": _Machine._stop, "POP": _Machine._drop,
    "POP_MARK": _Machine._drop_to_mark, "DUP": _Machine._duplicate,
    "LIST": _Machine._list, "TUPLE": _Machine._tuple, "DICT": _Machine._dict,
    "TUPLE1": lambda machine, _: machine._tuple_of(1),
    "TUPLE2": lambda machine, _: machine._tuple_of(2),
    "TUPLE3": lambda machine, _: machine._tuple_of(3),
    "APPEND": _Machine._append, "APPENDS": _Machine._appends,
    "SETITEM": _Machine._set_item, "SETITEMS": _Machine._set_items,
    "ADDITEMS": _Machine._add_items, "FROZENSET": _Machine._frozen_set,
    "PUT": _Machine._put, "BINPUT": _Machine._put, "LONG_BINPUT": _Machine._put,
    "MEMOIZE": _Machine._memoize,
    "GET": _Machine._get, "BINGET": _Machine._get, "LONG_BINGET": _Machine._get,
    "GLOBAL": _Machine._global, "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._call, "NEWOBJ": _Machine._call, "BUILD": _Machine._build,
    "BINPERSID": _Machine._external,
}  # fmt: skip
