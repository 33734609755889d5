"""Documents are read strictly: what is wrong is told exactly, all at once, and nothing else ever happens."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from builder import documents
from builder.documents import Choice, DocumentError, Form, Mode, Problems, Range, Size, field
from builder.documents.inserting import inserted
from builder.documents.nodes import quote
from builder.documents.yamltext import scan
from builder.lock import Lock, LockedDeb, LockedDebian, LockedFile, LockedPlatform, SociSettings
from builder.oci import spec
from builder.oci.config import Execution
from builder.oci.digest import Digest


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part."""

    later = ("future",)

    source: str = field(doc="Where from.", name="from")
    count: Annotated[int, Range(1, 9, "a number from 1 to 9")] = 1


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A thing with something of every type."""

    name: str
    parts: tuple[Part, ...] = ()
    color: Annotated[str, Choice(("red", "green"))] = "red"
    word: Annotated[str, Form("[a-z]+", "a small word")] = "w"
    words: tuple[Annotated[str, Form("[a-z]+", "a small word")], ...] | str = ()
    number: int = 0
    share: float = 0.0
    flag: bool = False
    size: Size = Size(0)  # noqa: RUF009
    mode: Mode = Mode(0o644)  # noqa: RUF009
    digest: Digest | None = None
    kind: Literal["auto", True, False] = "auto"
    env: tuple[tuple[str, str], ...] = ()
    free: Mapping[str, Any] = field(doc="Anything.", default_factory=dict)
    unique: tuple[str, ...] = field(doc="A set.", default=(), unique=True)
    part: Part | None = field(doc="A part.", default=None, short={False: Part(source="nowhere")})  # noqa: RUF009


def problems(text: str | bytes, cls: type = Thing) -> str:
    """What is said of a document, without the count in front."""
    with pytest.raises(DocumentError) as caught:
        documents.load(cls, documents.read_yaml(text, "f"))
    return str(caught.value)


def load(text: str) -> Thing:
    return documents.load(Thing, documents.read_yaml(text, "f"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"name: \xff\n", "f:1:7: not UTF-8: byte 0xff"),
        ("a: b\nname: x\x00y", "f:2:8: a control character, U+0000: a document is plain text"),
        ("name: x\x1by", "f:1:8: a control character, U+001B: a document is plain text"),
        ("name: x\u2028y", "f:1:8: a control character, U+2028: a document is plain text"),
        ("\tname: x", "f:1:1: a tab where YAML wants spaces: indent and separate with spaces"),
        ("free:\n\ta: x", "f:2:1: a tab where YAML wants spaces: indent and separate with spaces"),
        ("", "f: empty: there is no document in it"),
        ("# nothing\n", "f: empty: there is no document in it"),
        ("--- {name: x}\n--- {name: y}\n", "f:2:1: a second document: one file holds one document"),
        ("%YAML 1.1\n---\nname: x", "f:1:1: a %YAML or %TAG directive: leave it out"),
        ("name: x\nname: y", "f:2:1: $.name: the key is there twice, first in line 1"),
        ("name: x\nfree: {a: {b: 1, b: 2}}", "f:2:18: $.free.a.b: the key is there twice, first in line 2"),
        (
            "name: x\nfree: &a {b: 1}\npart:\n  <<: *a\n  from: x",
            'f:4:3: $.part["<<"]: merge keys are not read: put what is shared into a profile and use extends',
        ),
        ("name: x\nfree: {1: x}", 'f:2:8: $.free["1"]: a key has to be text (write it in quotes: "1")'),
        ("name: x\nfree: {true: x}", 'f:2:8: $.free.true: a key has to be text (write it in quotes: "true")'),
        ("name: x\nfree: {? [a] : x}", "f:2:10: $.free: a key has to be text"),
        (
            "name: !!python/object/apply:os.system [id]",
            'f:1:7: $.name: tag "!!python/object/apply:os.system" is not allowed: leave it out',
        ),
        (
            "name: !!str 3.10",
            'f:1:7: $.name: tag "!!str" is not allowed: write text in quotes, and nothing else needs one',
        ),
        ("name: !x y", 'f:1:7: $.name: tag "!x" is not allowed: write text in quotes, and nothing else needs one'),
        (
            "name: x\nfree: {a: !replace [1]}",
            'f:2:11: $.free.a: tag "!replace" is not allowed: leave it out',
        ),
        ("name: *a", "f:1:7: $.name: alias *a has no anchor before it"),
        ("name: x\nfree: &a {b: *a}", "f:2:14: $.free.b: alias *a stands inside what it refers to"),
        ("name: [x", "f:1:9: not YAML: expected ',' or ']', but got '<stream end>' (while parsing a flow sequence)"),
        ("name: x: y", "f:1:8: not YAML: mapping values are not allowed here"),
        ('name: "\\U99999999"', "f:1:10: not YAML: a character or number out of range"),
        ('name: "a\\0b"', "f:1:7: $.name: text with a NUL or half a surrogate pair: no file or program can take it"),
        ('name: "\\ud800"', "f:1:7: $.name: text with a NUL or half a surrogate pair: no file or program can take it"),
        ("- name", "f:1:1: expected a mapping, found a list"),
        ("name", 'f:1:1: expected a mapping, found "name"'),
        ("name: x # " + "x" * (1 << 20), "f: larger than 1 MiB: this is not a document for people"),
    ],
)
def test_bad_yaml(text: str | bytes, message: str) -> None:
    assert problems(text) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("part: {}", "f:1:1: $.name: required key missing|f:1:7: $.part.from: required key missing"),
        ("name:", "f:1:6: $.name: expected text, found nothing"),
        ("name: 3.10", 'f:1:7: $.name: expected text, found the number 3.10: write it in quotes: "3.10"'),
        ("name: 0644", 'f:1:7: $.name: expected text, found the number 0644: write it in quotes: "0644"'),
        ("name: 1_000", 'f:1:7: $.name: expected text, found the number 1_000: write it in quotes: "1_000"'),
        ("name: true", 'f:1:7: $.name: expected text, found true: write it in quotes: "true"'),
        ("name: {a: b}", "f:1:7: $.name: expected text, found a mapping"),
        ("name: x\nnmae: y", "f:2:1: $.nmae: unknown key (did you mean name?)"),
        (
            "name: x\npart: {from: x, zzz: y}",
            "f:2:17: $.part.zzz: unknown key (known here: from, count)",
        ),
        (
            "name: x\npart: {from: x, future: y}",
            "f:2:17: $.part.future: unknown key: this version does not know future yet",
        ),
        ("name: x\nparts: {from: x}", "f:2:8: $.parts: expected a list, found a mapping"),
        ("name: x\nparts: y", 'f:2:8: $.parts: expected a list, found "y": write it as a list: ["y"]'),
        ("name: x\nparts: [{from: x}, {}]", "f:2:20: $.parts[1].from: required key missing"),
        (
            "name: x\nparts: [{from: x, count: 10}]",
            'f:2:26: $.parts[0].count: expected a number from 1 to 9, found "10"',
        ),
        ("name: x\ncolor: gren", 'f:2:8: $.color: expected one of red, green, found "gren" (did you mean green?)'),
        ("name: x\nword: A", 'f:2:7: $.word: expected a small word, found "A"'),
        ("name: x\nwords: {}", "f:2:8: $.words: expected a list or text, found a mapping"),
        ("name: x\nwords: [a, B]", 'f:2:12: $.words[1]: expected a small word, found "B"'),
        ("name: x\nnumber: 1.0", "f:2:9: $.number: expected a whole number, found the number 1.0"),
        ("name: x\nnumber: '1'", 'f:2:9: $.number: expected a whole number, found "1"'),
        (
            "name: x\nnumber: 0x1f",
            "f:2:9: $.number: expected a whole number, found the number 0x1f: write a plain decimal number",
        ),
        ("name: x\nnumber: true", "f:2:9: $.number: expected a whole number, found true"),
        ("name: x\nflag: yes", 'f:2:7: $.flag: expected true or false, found "yes": write true or false'),
        ("name: x\nflag: 1", "f:2:7: $.flag: expected true or false, found the number 1: write true or false"),
        ("name: x\nsize: 4MB", 'f:2:7: $.size: expected a size such as 4MiB, found "4MB": write 4MiB'),
        ("name: x\nsize: 1.5", "f:2:7: $.size: expected a size such as 4MiB, found the number 1.5"),
        ("name: x\nsize: -1", "f:2:7: $.size: expected a size such as 4MiB, found the number -1"),
        (
            "name: x\nmode: 0755",
            'f:2:7: $.mode: expected octal permissions in quotes such as "0644", found the number 0755: '
            'write it in quotes: "0755"',
        ),
        (
            "name: x\nmode: 755",
            'f:2:7: $.mode: expected octal permissions in quotes such as "0644", found the number 755: '
            'write it in quotes: "0755"',
        ),
        ("name: x\nmode: '4755'", 'f:2:7: $.mode: expected octal permissions in quotes such as "0644", found "4755"'),
        ("name: x\ndigest: abc", "f:2:9: $.digest: not a sha256 digest: 'abc'"),
        ("name: x\nkind: ato", 'f:2:7: $.kind: expected one of auto, true, false, found "ato" (did you mean auto?)'),
        ("name: x\nkind: on", 'f:2:7: $.kind: expected one of auto, true, false, found "on"'),
        ("name: x\nkind: 1", "f:2:7: $.kind: expected one of auto, true, false, found the number 1"),
        (
            "name: x\nenv: {A: 8080}",
            'f:2:10: $.env.A: expected text, found the number 8080: write it in quotes: "8080"',
        ),
        (
            "name: x\nfree: {a: [off]}",
            "f:2:12: $.free.a[0]: off is a word to some readers, true or false to others: write true or false, or in "
            'quotes: "off"',
        ),
        (
            "name: x\nfree: {a: 0o17}",
            "f:2:11: $.free.a: 0o17 means different things to different readers: write a plain decimal number, or in "
            'quotes: "0o17"',
        ),
        (
            "name: x\nfree: {a: 1:30}",
            "f:2:11: $.free.a: 1:30 means different things to different readers: write a plain decimal number, or in "
            'quotes: "1:30"',
        ),
        (
            "name: x\nfree: {a: .inf}",
            "f:2:11: $.free.a: .inf means different things to different readers: write a plain decimal number, or in "
            'quotes: ".inf"',
        ),
        ("name: x\nunique: [a, b, a]", 'f:2:16: $.unique[2]: "a" is there twice, first as number 1'),
        ("name: x\npart: true", "f:2:7: $.part: expected a mapping, found true"),
    ],
)
def test_bad_values(text: str, message: str) -> None:
    said = problems(text).replace("\n  ", "\n").removeprefix("2 problems:\n")
    assert said.split("\n") == message.split("|")


def test_every_problem_at_once_sorted_by_place() -> None:
    text = "number: x\nnumber: 2\nname: 1\nparts:\n- {frm: a}\n- {from: [b]}\ncolour: red\n"
    with pytest.raises(DocumentError) as caught:
        load_both(text)
    assert str(caught.value).split("\n") == [
        "7 problems:",
        '  f:1:9: $.number: expected a whole number, found "x"',
        "  f:2:1: $.number: the key is there twice, first in line 1",
        '  f:3:7: $.name: expected text, found the number 1: write it in quotes: "1"',
        "  f:5:3: $.parts[0].from: required key missing",
        "  f:5:4: $.parts[0].frm: unknown key (did you mean from?)",
        "  f:6:10: $.parts[1].from: expected text, found a list",
        "  f:7:1: $.colour: unknown key (did you mean color?)",
    ]
    assert [(p.mark.line, p.path) for p in caught.value.problems][:2] == [(1, "$.number"), (2, "$.number")]


def load_both(text: str) -> object:
    """Reads as `build` reads a profile: what is wrong with the text and with the values in one go."""
    from builder.documents.loading import convert

    found = Problems()
    node = scan(text, "f", found)
    value = None if node is None else convert(Thing, node, found)
    found.check()
    return value


def test_many_problems_are_counted() -> None:
    said = problems("name: x\nfree: {" + ", ".join(f"a{i}: on" for i in range(120)) + "}")
    assert said.startswith("120 problems:\n")
    assert said.endswith("… and 70 more")


def test_values() -> None:
    thing = load(
        "name: yes\nparts: [{from: a, count: 9}]\ncolor: green\nwords: one\nnumber: -7\nshare: 1\nflag: true\n"
        "size: 4MiB\nmode: '755'\nkind: false\nenv: {B: '2', A: ''}\nfree: {b: [1, 2.5, null, ~, True, 2024-01-01], a: {}}\n"
        f"digest: sha256:{'a' * 64}\npart: false\n"
    )
    assert thing == Thing(
        name="yes",
        parts=(Part(source="a", count=9),),
        color="green",
        words="one",
        number=-7,
        share=1.0,
        flag=True,
        size=Size(4 << 20),
        mode=Mode(0o755),
        kind=False,
        env=(("A", ""), ("B", "2")),
        free={"b": [1, 2.5, None, None, True, "2024-01-01"], "a": {}},
        digest=Digest("a" * 64),
        part=Part(source="nowhere"),
    )
    assert documents.dump(thing) == {
        "name": "yes",
        "parts": [{"from": "a", "count": 9}],
        "color": "green",
        "word": "w",
        "words": "one",
        "number": -7,
        "share": 1.0,
        "flag": True,
        "size": "4MiB",
        "mode": "0755",
        "kind": False,
        "env": {"A": "", "B": "2"},
        "free": {"b": [1, 2.5, None, None, True, "2024-01-01"], "a": {}},
        "digest": f"sha256:{'a' * 64}",
        "part": {"from": "nowhere", "count": 1},
    }
    assert documents.load_json(Thing, json.dumps(documents.dump(thing)), "f") == thing


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"),
        ("off", "off"),
        ("1:30", "1:30"),
        ("1000:10", "1000:10"),
        ("3.10.2", "3.10.2"),
        ("2024-01-01", "2024-01-01"),
        ("1e", "1e"),
        ("'3.10'", "3.10"),
        ('"true"', "true"),
        ("|\n  3.10\n", "3.10\n"),
        (">-\n  a\n  b\n", "a b"),
        ("&a x", "x"),
        ("'a\tb'", "a\tb"),
    ],
)
def test_text_stays_what_was_written(text: str, value: str) -> None:
    assert load(f"name: {text}").name == value


def test_aliases_count_as_what_they_stand_for() -> None:
    assert load("name: &a x\nfree: {l: &l [1, *a], m: *l}").free == {"l": [1, "x"], "m": [1, "x"]}
    bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
    bomb += "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
    assert problems(bomb) == "f:5:38: $.a4[7]: more than 100000 values, with what aliases repeat"


def test_nesting_is_bounded() -> None:
    assert problems("[" * 1_000_000).endswith(": nested more than 64 deep")
    deep = "a0: &a0 {x: [[[[[[[[[[1]]]]]]]]]]}\n" + "".join(f"a{i}: &a{i} {{x: *a{i - 1}}}\n" for i in range(1, 70))
    assert problems(deep).endswith(": nested more than 64 deep")


def test_the_worst_document_is_refused_soon() -> None:
    for text in (
        "a: b\n" * 200_000,
        "- a\n" * 250_000,
        "{" * 60 + "a," * 400_000,
        "'" + "x\n " * 300_000 + "'",
        ":" * 10**6,
    ):
        start = time.perf_counter()
        problems(text)
        assert time.perf_counter() - start < 20


def complaint(read: Callable[[], object]) -> str | None:
    """What is said of what is read, if anything; what else is raised is a fault."""
    try:
        read()
    except DocumentError as error:
        return str(error)
    return None


# Text that looks like YAML finds more than any text does.
_YAMLISH = st.lists(
    st.sampled_from(
        (
            *"[]{},:-?!&*|>'\"#%@` \n\t~=<é🎉",
            *(
                "\n  ",
                "- ",
                ": ",
                "name",
                "free",
                "parts",
                "from",
                "<<",
                "&a ",
                "*a",
                "!!str ",
                "!replace ",
                "!<",
                "%99",
            ),
            *("---\n", "...\n", "%YAML 1.2\n", "%TAG ! x\n", "0644", "3.10", "yes", "null"),
            *("\\U99999999", "\\ud800", "\\x00", "\ufeff", "\x85", "\u2028"),
        )
    ),
    max_size=40,
).map("".join)


@settings(max_examples=600, deadline=2000)
@example(text='"\\U99999999"')
@example(text="%YAML 1." + "9" * 5000 + "\n--- x")
@example(text="!<%ff> x")
@given(text=st.one_of(_YAMLISH, st.text(max_size=200), st.binary(max_size=200)))
def test_any_text_is_a_value_or_a_document_error(text: str | bytes) -> None:
    said = complaint(lambda: documents.load(Thing, documents.read_yaml(text, "f", tags=["!replace"])))
    assert said is None or (said and all(line.isprintable() for line in said.split("\n")))


@settings(max_examples=300, deadline=2000)
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["name", "parts", "from", "free", "x"]), inner, max_size=4)
        ),
        max_leaves=20,
    )
)
def test_any_json_is_a_value_or_a_document_error(value: object) -> None:
    assert complaint(lambda: documents.load_json(Thing, json.dumps({"name": "x", "y": value}), "f"))
    text = json.dumps({"name": "x", "free": {"v": value}})
    said = complaint(lambda: documents.load_json(Thing, text, "f"))
    if said is None:
        assert documents.load_json(Thing, text, "f").free == {"v": value}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "f:1:2: not JSON: Expecting property name enclosed in double quotes"),
        ("", "f:1:1: not JSON: Expecting value"),
        ('{"name": "x"} y', "f:1:15: not JSON: Extra data"),
        (b'{"name": "\xff"}', "f: not UTF-8: byte 10"),
        ('\ufeff{"name": "x"}', "f:1:1: not JSON: Unexpected UTF-8 BOM (decode using utf-8-sig)"),
        ('{"name": NaN}', "f: not JSON: NaN is no JSON number"),
        ('{"name": "x", "share": 1e999}', "f: not JSON: a number beyond what a double can hold"),
        ('{"name": "x", "number": ' + "9" * 5000 + "}", "f: not JSON: a number of 5000 digits"),
        ('{"name": "x", "name": "y"}', "f: $.name: the key is there twice"),
        ('{"name": "\\ud800"}', "f: $.name: text with a NUL or half a surrogate pair: no file or program can take it"),
        ("[" * 200 + "]" * 200, "f: nested more than 64 deep"),
        ("[" * 100_000, "f: nested more than 64 deep"),
        ('{"x":' * 100_000, "f: nested more than 64 deep"),
        ("[" + "[],[]," * 1_000_000, "f: more than 2000000 values"),
        ('{"name": "x", "naem": 1}', "f: $.naem: unknown key (did you mean name?)"),
        ('{"name": 1}', 'f: $.name: expected text, found the number 1: write it in quotes: "1"'),
        ('{"name": null}', "f: $.name: expected text, found nothing"),
        ('{"name": "x", "number": 1.0}', "f: $.number: expected a whole number, found the number 1.0"),
        ("[]", "f: expected a mapping, found a list"),
    ],
)
def test_bad_json(text: str | bytes, message: str) -> None:
    with pytest.raises(DocumentError) as caught:
        documents.load_json(Thing, text, "f")
    assert str(caught.value) == message


def test_a_lock_is_read_back() -> None:
    file = LockedFile("debian", "pool/main/a/a_1_amd64.deb", "0" * 64, 123)
    debian = LockedDebian("bookworm", "sha256:1", (), (LockedDeb("a", "1", "amd64", file),))
    lock = Lock(
        name="x",
        profile=str(Digest.of(b"")),
        created="2026-01-01T00:00:00Z",
        platforms=(LockedPlatform(spec.Platform("linux", "arm64", "v8"), debian),),
        image=Execution(env=(("A", "1"), ("B", "2")), ports=("80/tcp",)),
        soci=SociSettings(enabled=False),
    )
    document = documents.dump(lock)
    assert document["platforms"][0]["platform"] == "linux/arm64/v8"
    assert "python" not in document["platforms"][0]
    assert document["image"]["env"] == {"A": "1", "B": "2"}
    assert documents.load_json(Lock, spec.encode(document), "x.lock.json") == lock


@pytest.mark.parametrize(
    ("text", "size", "canonical"),
    [("0", 0, "0"), ("10B", 10, "10"), ("1024", 1024, "1KiB"), ("4096KiB", 4 << 20, "4MiB"), ("3GiB", 3 << 30, "3GiB")],
)
def test_sizes(text: str, size: int, canonical: str) -> None:
    assert Size.parse(text) == size
    assert str(Size(size)) == canonical
    assert Size.parse(canonical) == size


@given(st.text())
def test_quoted_text_is_one_short_printable_line(text: str) -> None:
    assert quote(text).isprintable()
    assert len(quote(text)) <= 61 * 6 + 3


@pytest.mark.parametrize(
    ("text", "keys", "expected"),
    [
        ("a: 1\n", "b", "a: 1\n\nb: x\n"),
        ("a: 1  # one\n# end", "b", "a: 1  # one\n# end\n\nb: x\n"),
        ("a: 1", "b.c", "a: 1\n\nb: {c: x}\n"),
        ("a: {b: {}, c: [1]}  # flow\nd: 2\n", "a.e", "a: {b: {}, c: [1], e: x}  # flow\nd: 2\n"),
        ("a: {\n  b: 1,\n}\n", "a.c", "a: {\n  b: 1, c: x,\n}\n"),
        ("a:\n  b: 1\n\n# about c\nc: 2\n", "a.d.e", "a:\n  b: 1\n  d: {e: x}\n\n# about c\nc: 2\n"),
        (
            "a:\n  - b\nc:\n    d: |\n      text\n      more\n",
            "c.e",
            "a:\n  - b\nc:\n    d: |\n      text\n      more\n    e: x\n",
        ),
        ("a: !replace [1]\n", "b", "a: !replace [1]\n\nb: x\n"),
        ("a: 1\n", "a", KeyError),
        ("a: 1\n", "a.b", ValueError),
        ("a: {}\n", "a.b", ValueError),
        ("", "a", ValueError),
        ("[1]", "a", ValueError),
        ("a: [", "b", ValueError),
    ],
)
def test_a_key_is_put_into_a_document(text: str, keys: str, expected: str | type[Exception]) -> None:
    if not isinstance(expected, str):
        with pytest.raises(expected):
            inserted(text, keys.split("."), "x")
        return
    found = inserted(text, keys.split("."), "x")
    assert found == expected
    assert yaml.compose(found) is not None
