"""YAML to nodes: a small, strict and bounded part of YAML 1.2, read from PyYAML's events.

Nothing is constructed, no tag is followed, and a document cannot grow while it is read: an alias costs what
it stands for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Literal, NoReturn

import yaml

from builder.documents.nodes import Items, Mark, Node, Pairs, Path, Problems, Scalar, quote

MAX_BYTES = 1 << 20
MAX_NODES = 100_000
MAX_DEPTH = 64
REPLACE = "!replace"


def scan(data: bytes | str, file: str, problems: Problems, tags: Collection[str] = ()) -> Node | None:
    """The one document in `data`, or None where it cannot be read on; what is wrong goes to `problems`.

    `tags` names the tags that may be used; `!replace` is the only one known.
    """
    text = _text(data, file, problems)
    if text is None:
        return None
    parser = yaml.SafeLoader(text)
    try:
        return _Composer(file, problems, tags).compose(iter(parser.get_event, None))
    except _StopError:
        return None
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        mark = Mark(file, at.line + 1, at.column + 1) if at else Mark(file)
        if at and text[at.index : at.index + 1] == "\t":
            problems.add(mark, (), "a tab where YAML wants spaces: indent and separate with spaces")
        else:
            problems.add(mark, (), f"not YAML: {error.problem}{f' ({error.context})' if error.context else ''}")
    except (ValueError, OverflowError):
        # PyYAML lets chr() and int() speak for themselves: "\U99999999", "%YAML 1.999…"
        problems.add(Mark(file, parser.line + 1, parser.column + 1), (), "not YAML: a character or number out of range")
    return None


def _text(data: bytes | str, file: str, problems: Problems) -> str | None:
    if len(data) > MAX_BYTES:
        problems.add(Mark(file), (), f"larger than {MAX_BYTES >> 20} MiB: this is not a document for people")
        return None
    try:
        text = data.decode() if isinstance(data, bytes) else data
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode()
        problems.add(_place(before, file), (), f"not UTF-8: byte 0x{error.object[error.start]:02x}")
        return None
    if bad := _FORBIDDEN.search(text):
        message = f"a control character, U+{ord(bad[0]):04X}: a document is plain text"
        problems.add(_place(text[: bad.start()], file), (), message)
        return None
    return text


def _place(before: str, file: str) -> Mark:
    return Mark(file, before.count("\n") + 1, len(before) - before.rfind("\n"))


_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")


class _StopError(Exception):
    """Reading on makes no sense; the problem has been told."""


@dataclass(slots=True)
class _Open:
    """A collection that is being read: `key` waits for its value; `size` and `height` count what lies inside."""

    mark: Mark
    path: Path
    kind: Literal["list", "mapping"]
    anchor: str | None
    replace: bool
    items: list[Node] = field(default_factory=list)
    pairs: list[tuple[Scalar, Node]] = field(default_factory=list)
    seen: dict[str, Mark] = field(default_factory=dict)
    key: Scalar | None = None
    skip: bool = False
    size: int = 1
    height: int = 0


@dataclass(frozen=True, slots=True)
class _Done:
    """A node with the number of nodes in it and the number of levels below it."""

    node: Node
    size: int = 1
    height: int = 0


class _Composer:
    """Makes nodes from events, without recursion."""

    def __init__(self, file: str, problems: Problems, tags: Collection[str]) -> None:
        self._file = file
        self._problems = problems
        self._tags = tags
        self._open: list[_Open] = []
        self._anchors: dict[str | None, _Done | None] = {}
        self._count = 0

    def compose(self, events: Iterator[yaml.Event]) -> Node | None:
        root: Node | None = None
        documents = 0
        for event in events:
            match event:
                case yaml.DocumentStartEvent():
                    documents += 1
                    if documents > 1:
                        self._stop(event, "a second document: one file holds one document")
                    if event.version or event.tags:
                        self._add(event, "a %YAML or %TAG directive: leave it out")
                case yaml.ScalarEvent():
                    root = self._put(event, self._anchored(event, _Done(self._scalar(event)))) or root
                case yaml.AliasEvent():
                    root = self._put(event, self._alias(event)) or root
                case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                    self._start(event)
                case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                    root = self._put(event, self._end()) or root
        if root is None:
            self._problems.add(Mark(self._file), (), "empty: there is no document in it")
        return root

    def _scalar(self, event: yaml.ScalarEvent) -> Scalar:
        self._grow(event, 1, 0)
        text = str(event.value)
        if event.tag is not None:
            self._tag(event, event.tag, "write text in quotes, and nothing else needs one")
        if "\0" in text or _SURROGATE.search(text):
            self._add(event, "text with a NUL or half a surrogate pair: no file or program can take it")
        plain = event.style in (None, "") and event.tag is None
        return resolve(self._mark(event), text) if plain else Scalar(self._mark(event), text, text)

    def _alias(self, event: yaml.AliasEvent) -> _Done:
        if event.anchor not in self._anchors:
            self._stop(event, f"alias *{event.anchor} has no anchor before it")
        done = self._anchors[event.anchor]
        if done is None:
            self._stop(event, f"alias *{event.anchor} stands inside what it refers to")
        self._grow(event, done.size, done.height)
        return done

    def _start(self, event: yaml.SequenceStartEvent | yaml.MappingStartEvent) -> None:
        self._grow(event, 1, 1)
        replace = event.tag == REPLACE and REPLACE in self._tags
        if event.tag is not None and not replace:
            self._tag(event, event.tag, "leave it out")
        if event.anchor:
            self._anchors[event.anchor] = None
        kind: Literal["list", "mapping"] = "list" if isinstance(event, yaml.SequenceStartEvent) else "mapping"
        self._open.append(_Open(self._mark(event), self._path(), kind, event.anchor, replace))

    def _end(self) -> _Done:
        done = self._open.pop()
        node: Node
        if done.kind == "list":
            node = Items(done.mark, tuple(done.items), done.replace)
        else:
            node = Pairs(done.mark, tuple(done.pairs), done.replace)
        result = _Done(node, done.size, done.height + 1)
        if done.anchor:
            self._anchors[done.anchor] = result
        return result

    def _anchored(self, event: yaml.ScalarEvent, done: _Done) -> _Done:
        if event.anchor:
            self._anchors[event.anchor] = done
        return done

    def _put(self, event: yaml.Event, done: _Done) -> Node | None:
        """Puts a node into the collection that is open; gives it back when it is the root."""
        if not self._open:
            return done.node
        into = self._open[-1]
        into.size += done.size
        into.height = max(into.height, done.height)
        if into.kind == "list":
            into.items.append(done.node)
        elif into.key is None:
            into.key, into.skip = self._key(into, event, done.node)
        else:
            if not into.skip:
                into.pairs.append((into.key, done.node))
            into.key = None
        return None

    def _key(self, into: _Open, event: yaml.Event, node: Node) -> tuple[Scalar, bool]:
        """The key, and whether the pair is left out because of it."""
        if not isinstance(node, Scalar):
            self._problems.add(node.mark, into.path, "a key has to be text")
            return Scalar(node.mark, "", ""), True
        path = (*into.path, node.text)
        mark = self._mark(event) if isinstance(event, yaml.AliasEvent) else node.mark
        if node.plain and node.text == "<<":
            self._problems.add(mark, path, "merge keys are not read: put what is shared into a profile and use extends")
        elif not isinstance(node.value, str) or node.doubt == "number":
            self._problems.add(mark, path, f"a key has to be text (write it in quotes: {quote(node.text)})")
        elif node.text in into.seen:
            first = into.seen[node.text]
            self._problems.add(mark, path, f"the key is there twice, first in line {first.line}")
        else:
            into.seen[node.text] = mark
            return node, False
        return node, True

    def _grow(self, event: yaml.Event, size: int, height: int) -> None:
        self._count += size
        if self._count > MAX_NODES:
            self._stop(event, f"more than {MAX_NODES} values, with what aliases repeat")
        if len(self._open) + height > MAX_DEPTH:
            self._stop(event, f"nested more than {MAX_DEPTH} deep")

    def _tag(self, event: yaml.Event, tag: str, advice: str) -> None:
        name = "!!" + tag.removeprefix(_STANDARD) if tag.startswith(_STANDARD) else tag
        if tag == REPLACE and REPLACE in self._tags:
            self._add(event, "!replace stands before a list or a mapping; anything else replaces by itself")
        else:
            self._add(event, f"tag {quote(name)} is not allowed: {advice}")

    def _add(self, event: yaml.Event, message: str) -> None:
        self._problems.add(self._mark(event), self._path(), message)

    def _stop(self, event: yaml.Event, message: str) -> NoReturn:
        self._add(event, message)
        raise _StopError

    def _mark(self, event: yaml.Event) -> Mark:
        at = event.start_mark
        return Mark(self._file, at.line + 1, at.column + 1) if at else Mark(self._file)

    def _path(self) -> Path:
        """Where the next node will stand."""
        if not self._open:
            return ()
        into = self._open[-1]
        if into.kind == "list":
            return (*into.path, len(into.items))
        return into.path if into.key is None else (*into.path, into.key.text)


_STANDARD = "tag:yaml.org,2002:"
_SURROGATE = re.compile("[\ud800-\udfff]")


def resolve(mark: Mark, text: str) -> Scalar:
    """What plain text means by the core schema of YAML 1.2, as far as YAML 1.1 means the same; the rest is in doubt."""
    if text in _WORDS:
        return Scalar(mark, text, _WORDS[text], plain=True)
    if _INTEGER.fullmatch(text):
        # No use of a profile needs more digits, and int() and others' readers have limits of their own.
        return Scalar(mark, text, int(text), True) if len(text) < 20 else Scalar(mark, text, text, True, "number")
    if _FLOAT.fullmatch(text):
        number = float(text)
        return Scalar(mark, text, number, True) if math.isfinite(number) else Scalar(mark, text, text, True, "number")
    if _NUMBERS_ELSEWHERE.fullmatch(text):
        return Scalar(mark, text, text, True, "number")
    if text.lower() in ("yes", "no", "on", "off"):
        return Scalar(mark, text, text, True, "word")
    if _TIMES_ELSEWHERE.fullmatch(text):
        return Scalar(mark, text, text, True, "time")
    return Scalar(mark, text, text, plain=True)


_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(
    r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?",
)
_NUMBERS_ELSEWHERE = re.compile(
    r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?|0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+"
    r"|\.[0-9][0-9_]*|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)"
)
_TIMES_ELSEWHERE = re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")
