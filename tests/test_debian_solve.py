"""Versions, relations, and the set of packages that satisfies a request."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

import judges
import pytest
from debarchive import listed
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.sources.control import Relation, fields, relations, stanzas, version
from builder.sources.packages import Index, PackagesFile
from builder.sources.solve import ResolutionError, Solution, solve


def index(*stanzas: str, architecture: str = "amd64") -> Index:
    return Index([PackagesFile("debian", b"\n" + "\n".join(stanzas).encode())], architecture)


def chosen(solution: Solution) -> list[str]:
    return [package.name for package in solution.packages]


def solved(requests: Sequence[str], *stanzas: str) -> list[str]:
    return chosen(solve(index(*stanzas), requests))


def test_fields_and_stanzas() -> None:
    assert fields("A: b\n  c\n\td\nE:\n f") == {"a": "b\n  c\n\td", "e": "\n f"}
    assert list(stanzas("# x\n\nA: b\n# y\nC: d\n\n\nE: f\n")) == ["A: b\nC: d", "E: f"]
    for text, why in (("A: b\nA: c", "twice"), (" A: b", "continuation"), ("A", "not a field"), (": b", "not a field")):
        with pytest.raises(ValueError, match=why):
            fields(text)


def test_relations() -> None:
    found = relations("a, b:any (>= 1:2.0-1~) | c(<3) ,d (=1)")
    assert found == (
        (Relation("a"),),
        (Relation("b", ">=", "1:2.0-1~", "any"), Relation("c", "<=", "3")),
        (Relation("d", "=", "1"),),
    )
    assert [str(relation) for group in found for relation in group] == [
        "a",
        "b:any (>= 1:2.0-1~)",
        "c (<= 3)",
        "d (= 1)",
    ]
    for text in ("a b", "a (1)", "A", "a (>= x y)", "a |", "a (>= )", "a [amd64]"):
        with pytest.raises(ValueError, match=r"not a relation|[Ii]nvalid version"):
            relations(text)


_PIECES = st.sampled_from(["0", "1", "9", "10", "a", "Z", "+", ".", "~", "~~", "rc", "deb12u1"])
_PARTS = st.lists(_PIECES, max_size=5).map("".join)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["", "0:", "1:"]), _PARTS, st.sampled_from(["", "-0", "-1"])), min_size=2, max_size=2
    )
)
def test_versions_compare_as_dpkg_compares(pieces: list[tuple[str, str, str]]) -> None:
    dpkg = judges.require("dpkg")
    one, other = (f"{epoch}1{upstream}{revision}" for epoch, upstream, revision in pieces)
    for operator, word in (("<<", "lt"), ("=", "eq"), (">>", "gt"), ("<=", "le"), (">=", "ge")):
        said = subprocess.run([dpkg, "--compare-versions", one, word, other], check=False).returncode == 0
        assert Relation("x", operator, other).allows(one) is said
    assert (version(one) == version(one)) is True


def test_dependencies_are_followed_and_nothing_else() -> None:
    packages = (
        listed("app", depends="lib (>= 1), data", pre_depends="base", recommends="more", suggests="most"),
        listed("lib", "1.2", depends="app"),
        listed("data", architecture="all"),
        listed("base"),
        listed("more"),
        listed("most"),
        listed("core", essential="yes"),
    )
    assert solved(["app"], *packages) == ["app", "base", "data", "lib"]


def test_highest_version_that_is_allowed() -> None:
    packages = [listed("lib", version) for version in ("1.0", "1:0.5", "2.0~rc1")]
    assert solve(index(*packages), ["lib"]).packages[0].version == "1:0.5"
    assert solve(index(*packages), ["lib=2.0~rc1"]).packages[0].version == "2.0~rc1"
    limited = solve(index(*packages, listed("app", depends="lib (<< 2)")), ["app"])
    assert limited.packages[1].version == "1.0"


def test_a_constraint_that_comes_late() -> None:
    packages = (
        listed("a", depends="lib"),
        listed("z", depends="lib (= 1)"),
        listed("lib", "1", depends="old"),
        listed("lib", "2", depends="new"),
        listed("old"),
        listed("new"),
    )
    assert solved(["a", "z"], *packages) == ["a", "lib", "old", "z"]


def test_breaks_choose_another_version() -> None:
    packages = (listed("a", breaks="lib (>= 2)"), listed("lib", "1"), listed("lib", "2"))
    assert [package.version for package in solve(index(*packages), ["a", "lib"]).packages] == ["1.0", "1"]


def test_alternatives() -> None:
    packages = (
        listed("app", depends="first | second"),
        listed("wish", depends="ghost | second"),
        listed("user", depends="second"),
        listed("first"),
        listed("second"),
    )
    assert solved(["app"], *packages) == ["app", "first"]
    assert solved(["app", "user"], *packages) == ["app", "second", "user"]
    assert solved(["wish"], *packages) == ["second", "wish"]
    assert solved(["app", "wish"], *packages) == ["app", "first", "second", "wish"]


def test_virtual_packages() -> None:
    packages = (
        listed("app", depends="virtual"),
        listed("exact", depends="virtual (>= 2)"),
        listed("b-rare", provides="virtual", priority="extra"),
        listed("c-usual", provides="other, virtual (= 2)", priority="optional"),
        listed("d-usual", provides="virtual (= 1)", priority="optional"),
    )
    assert solved(["app"], *packages) == ["app", "c-usual"]
    assert solved(["app", "d-usual"], *packages) == ["app", "d-usual"]
    assert solved(["exact", "d-usual"], *packages) == ["c-usual", "d-usual", "exact"]
    assert solved(["virtual"], *packages) == ["c-usual"]


def test_a_package_that_provides_a_newer_version_of_another() -> None:
    packages = (
        listed("app", depends="lib (>= 5)"),
        listed("lib", "1"),
        listed("libt64", provides="lib (= 6)"),
    )
    assert solved(["app"], *packages) == ["app", "libt64"]


def test_architecture_qualifiers() -> None:
    packages = (
        listed("app", depends="a:any, b:native, c:amd64, d:arm64 | a"),
        listed("a"),
        listed("b"),
        listed("c"),
        listed("foreign", depends="a:arm64"),
    )
    assert solved(["app"], *packages) == ["a", "app", "b", "c"]
    with pytest.raises(ResolutionError, match="foreign needs a:arm64"):
        solved(["foreign"], *packages)


def test_what_only_scripts_need_is_left_out() -> None:
    packages = (
        listed("base-files", pre_depends="awk"),
        listed("app", depends="awk, debconf (>= 0.5) | debconf-2.0, adduser, lib", pre_depends="dpkg (>= 1.17)"),
        listed("mawk", provides="awk"),
        listed("lib"),
        *(listed(name) for name in ("debconf", "adduser", "dpkg")),
    )
    assert solved(["base-files"], *packages) == ["base-files"]
    assert solved(["app"], *packages) == ["app", "lib", "mawk"]
    assert solved(["app", "debconf"], *packages) == ["app", "debconf", "lib", "mawk"]
    assert chosen(solve(index(*packages), ["app"], skip={"app": ["awk", "lib"], "*": ["dpkg"]})) == [
        "adduser",
        "app",
        "debconf",
    ]


def test_closure() -> None:
    packages = (
        listed("python", depends="minimal, rest"),
        listed("minimal", depends="libc, virtual"),
        listed("libc", depends="minimal"),
        listed("real", provides="virtual"),
        listed("rest"),
    )
    solution = solve(index(*packages), ["python"])
    assert solution.closure(["minimal"]) == ("libc", "minimal", "real")
    assert solution.closure(["rest"]) == ("rest",)
    with pytest.raises(KeyError):
        solution.closure(["other"])


def test_locked_versions_are_kept_where_they_can_be() -> None:
    packages = (
        listed("a", "1", depends="lib"),
        listed("a", "2", depends="lib (= 2)"),
        listed("lib", "1"),
        listed("lib", "2"),
        listed("other", "1"),
        listed("other", "3"),
    )
    keep = {"a": "1", "lib": "1", "other": "2"}
    found = solve(index(*packages), ["a", "other"], prefer=keep).packages
    assert [(package.name, package.version) for package in found] == [("a", "1"), ("lib", "1"), ("other", "3")]
    moved = solve(index(*packages), ["a", "other"], prefer={"lib": "1", "other": "1"}).packages
    assert [(package.name, package.version) for package in moved] == [("a", "2"), ("lib", "2"), ("other", "1")]


def test_the_order_of_what_is_asked_for_does_not_matter() -> None:
    packages = (
        listed("a", depends="x | y"),
        listed("b", depends="y | x"),
        listed("x"),
        listed("y"),
    )
    assert solved(["a", "b"], *packages) == solved(["b", "a", "a"], *packages) == ["a", "b", "x"]


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        (["tol"], "the archive has no package 'tol' for amd64"),
        (["app"], r"lib needs ghost \(>= 2\), which the archive does not have \(asked for: app -> lib\)"),
        (["old"], r"no version of tool satisfies: old needs tool \(>= 9\); there is 2, 1"),
        (["tool=3"], r"no version of tool satisfies: the profile needs tool \(= 3\); there is 2, 1"),
        (
            ["one", "two"],
            r"no version of tool satisfies: one needs tool \(= 1\); two needs tool \(= 2\); there is 2, 1",
        ),
        (["tool=1", "two"], r"no version of tool satisfies: the profile needs tool \(= 1\); two needs tool"),
        (["cat", "dog"], "cat 1.0 conflicts with pet, and dog 1.0 is that"),
        (["breaker", "tool"], r"breaker 1.0 conflicts with tool \(>> 0\), and tool 2 is that"),
        (["foreign"], "the archive has no package 'foreign' for amd64"),
        (["no spaces"], "not a package: 'no spaces'"),
        (["tool="], "not a package: 'tool='"),
        (["a, b"], "not a package: 'a, b'"),
    ],
)
def test_what_cannot_be(requests: list[str], message: str) -> None:
    packages = (
        listed("tool", "1"),
        listed("tool", "2"),
        listed("app", depends="lib"),
        listed("lib", depends="ghost (>= 2)"),
        listed("old", depends="tool (>= 9)"),
        listed("one", depends="tool (= 1)"),
        listed("two", depends="tool (= 2)"),
        listed("cat", provides="pet", conflicts="pet"),
        listed("dog", provides="pet"),
        listed("breaker", breaks="tool (>> 0)"),
        listed("foreign", architecture="arm64"),
    )
    with pytest.raises(ResolutionError, match=message):
        solved(requests, *packages)


def test_a_misspelt_name_has_a_suggestion() -> None:
    with pytest.raises(ResolutionError) as raised:
        solved(["libgl"], listed("libgl1"), listed("libgles2"), listed("zlib1g"))
    assert raised.value.hint == "did you mean libgl1, libgles2?"


def test_what_breaks_itself_is_no_conflict() -> None:
    packages = (listed("app", provides="role", conflicts="role", breaks="app (<< 0.5)"),)
    assert solved(["app"], *packages) == ["app"]
