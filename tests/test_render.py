"""Templates give the same bytes everywhere, or say in which line they do not."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.errors import BuilderError
from builder.render import RenderError, render

ROOT = Path(__file__).resolve().parent.parent
VALUES = {"port": 8080, "server": {"host": "a", "ports": [1, 2]}, "text": "x", "name": "app"}


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("port {{ port }}\n", "port 8080\n"),
        ("no end of line", "no end of line"),
        ("a\r\nb\r\n", "a\nb\n"),
        ("<{{ text }}> & {{ '<&>' }}", "<x> & <&>"),
        ("{% for key, value in server.items() %}{{ key }} {% endfor %}", "host ports "),
        (
            "{% for p in server.ports %}{{ loop.index }}/{{ loop.length }}:{{ p }}{{ ', ' if not loop.last }}{% endfor %}",
            "1/2:1, 2/2:2",
        ),
        ("{{ server | tojson }}", '{"host": "a", "ports": [1, 2]}'),
        ("{{ missing is defined }} {{ missing | default('d') }}", "False d"),
        ("{% set n = namespace(x=0) %}{% for p in server.ports %}{% set n.x = n.x + p %}{% endfor %}{{ n.x }}", "3"),
        ("{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}{{ twice('é') }}", "éé"),
        ("{% for item in [[1, [2]], 3] recursive %}{{ loop(item) if item is iterable else item }}{% endfor %}", "123"),
        ("{% set block %}a{{ port }}{% endset %}{{ block ~ '-' ~ name }}", "a8080-app"),
        ("{{ '%05d' % port }} {{ '{:>6}'.format(text) }} {{ 'x' | center(3) }}|", "08080      x  x |"),
        ("{{ '=' * 5 }}{{ 2 ** 10 }}{{ [1] + [2] }}", "=====1024[1, 2]"),
    ],
)
def test_rendered(text: str, result: str) -> None:
    assert render(text, VALUES, "t.j2").decode() == result


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ prot }}", "t.j2:1: 'prot' is undefined (did you mean port?)"),
        ("\n\n{% if zzzzz %}{% endif %}", "t.j2:3: 'zzzzz' is undefined (known here: port, server, text, name)"),
        ("\n{{ server.prots }}", "t.j2:2: 'dict object' has no attribute 'prots' (did you mean ports?)"),
        ("{{ server['hots'] }}", "t.j2:1: 'dict object' has no attribute 'hots' (did you mean host?)"),
        (
            "{% for x in nothing %}\n{% endfor %}",
            "t.j2:1: 'nothing' is undefined (known here: port, server, text, name)",
        ),
        ("\n{{ 'a' ~ prot }}", "t.j2:2: 'prot' is undefined (did you mean port?)"),
        ("{{ lipsum() }}", "t.j2:1: 'lipsum' is undefined (known here: port, server, text, name)"),
        ("{{ [1, 2] | random }}", "t.j2:1: No filter named 'random'."),
        ("\n{{ port", "t.j2:2: unexpected end of template, expected 'end of print statement'."),
        ("{% include 'x' %}", "t.j2:1: a template stands alone: it cannot include, import or extend another one"),
        ("\n{% import 'x' as x %}", "t.j2:2: a template stands alone: it cannot include, import or extend another one"),
        ("{% extends 'x' %}", "t.j2:1: a template stands alone: it cannot include, import or extend another one"),
        ("{{ server.items }}", "t.j2:1: a builtin_function_or_method cannot be printed: call it with ()"),
        ("{{ 'a' ~ server.keys }}", "t.j2:1: a builtin_function_or_method cannot be printed: call it with ()"),
        ("{{ server.keys | string }}", "t.j2:1: a builtin_function_or_method cannot be printed: call it with ()"),
        (
            "{{ [1] | map('abs') }}",
            "t.j2:1: a generator cannot be printed: turn it into a list or a text, with a filter such as list or join",
        ),
        ("{{ 1 / 0 }}", "t.j2:1: division by zero"),
        ("{% for x in 5 %}{% endfor %}", "t.j2:1: 'int' object is not iterable"),
        ("{{ ''.__class__ }}", "t.j2:1: access to attribute '__class__' of 'str' object is unsafe."),
        ("{{ server.ports.append(3) }}", "t.j2:1: access to attribute 'append' of 'list' object is unsafe."),
        ("{{ '\ud800' }}", "t.j2: not text: half a surrogate pair"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "t.j2:1: nested too deep"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "t.j2: nested too deep"),
        (
            "{% for i in range(1000000) %}{% endfor %}",
            "t.j2:1: Range too big. The sandbox blocks ranges larger than MAX_RANGE (100000).",
        ),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "t.j2:1: more than 1000000 steps: does a loop end?",
        ),
        (
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
            "t.j2:1: more than 1000000 steps: does a loop end?",
        ),
        ("{% for a in range(99999) %}" + "x" * 1000 + "{% endfor %}", "t.j2: more than 16 MiB of text"),
        ("{{ 'x' * 10 ** 12 }}", "t.j2:1: more than 16 MiB of text"),
        ("{{ 10 ** 100000 }}", "t.j2:1: a number that is too large"),
        ("{{ '%99999999999d' % 1 }}", "t.j2:1: a format with a width that is computed or more than 9999"),
        ("{{ '%*d' % (99999999, 1) }}", "t.j2:1: a format with a width that is computed or more than 9999"),
        ("{{ '%099999999d' | format(1) }}", "t.j2:1: a format with a width that is computed or more than 9999"),
        ("{{ '{:>99999999}'.format(1) }}", "t.j2:1: a format with a width that is computed or more than 9999"),
        ("{{ '{:>{}}'.format(1, 99999999) }}", "t.j2:1: a format with a width that is computed or more than 9999"),
        ("{{ 'x'.ljust(99999999) }}", "t.j2:1: a width of more than 9999"),
        ("{{ 'x' | center(99999999) }}", "t.j2:1: a width of more than 9999"),
        ("{{ [1] | batch(99999999, 0) | list }}", "t.j2:1: a width of more than 9999"),
        ("{{ [1] | tojson(indent=99999999) }}", "t.j2:1: a width of more than 9999"),
        (
            "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "t.j2:1: more than 16 MiB of text",
        ),
        (
            "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}",
            "t.j2:1: more than 16 MiB of text",
        ),
    ],
)
def test_bad_templates(text: str, message: str) -> None:
    start = time.perf_counter()
    with pytest.raises(RenderError) as caught:
        render(text, VALUES, "t.j2")
    assert str(caught.value) == message
    assert time.perf_counter() - start < 120


def test_deeply_nested_blocks_are_an_error() -> None:
    with pytest.raises(RenderError, match=r"^t\.j2"):
        render("{% for i in [1] %}" * 60 + "{% endfor %}" * 60, {}, "t.j2")


def test_values_cannot_be_changed() -> None:
    values = {"items": [1], "map": {"a": 1}}
    for text in ("{{ items.append(2) }}", "{{ map.update(b=1) }}", "{{ items.pop() }}"):
        with pytest.raises(RenderError, match="is unsafe"):
            render(text, values, "t.j2")
    assert values == {"items": [1], "map": {"a": 1}}


def test_the_same_bytes_under_another_hash_seed() -> None:
    text = "{% for k, x in v.items() %}{{ k }}={{ x }};{% endfor %}{{ v }}{{ v | tojson }}"
    text += "{{ l | unique | list }}{{ l | groupby(0) }}"
    code = (
        "import sys; from builder.render import render; "
        "values = {'v': {'b': 1, 'a': [1, {'z': 2, 'y': 3}], 'c': None}, 'l': ['x', 'y', 'x']}; "
        f"sys.stdout.buffer.write(render({text!r}, values, 't'))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(outputs) == 1
    assert next(iter(outputs)).startswith(b"b=1;a=[1, {'z': 2, 'y': 3}];c=None;")


_PIECES = st.lists(
    st.sampled_from(
        (
            *(
                "{{ ",
                " }}",
                "{% if ",
                " %}",
                "{% endif %}",
                "{% for x in ",
                "{% endfor %}",
                "{% set a = ",
                "{# ",
                " #}",
            ),
            *(
                "port",
                "server",
                "text",
                "x",
                "a",
                ".",
                "[",
                "]",
                "(",
                ")",
                "'",
                '"',
                "1",
                "0",
                " | ",
                "~",
                "+",
                "*",
                "**",
            ),
            *(
                "tojson",
                "length",
                "join",
                "default",
                "upper",
                "list",
                "sum",
                "int",
                "round",
                "items",
                "format",
                "%",
                "\n",
            ),
        )
    ),
    max_size=25,
).map("".join)


@settings(max_examples=500, deadline=5000)
@given(text=st.one_of(_PIECES, _PIECES.map(lambda text: f"{{{{ {text} }}}}"), st.text(max_size=100)))
def test_any_template_gives_bytes_or_an_error(text: str) -> None:
    try:
        assert isinstance(render(text, VALUES, "t.j2"), bytes)
    except BuilderError as error:
        assert str(error).startswith("t.j2")  # noqa: PT017 (there may be no error)
