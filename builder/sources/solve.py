"""Which packages satisfy a request: dependencies, alternatives and virtual packages become one set, always the same.

What has only one answer is chosen first; an alternative is decided when nothing else is left, for what is chosen
already, else for the first that exists. There is no search: when a choice meets a constraint that came too late, the
constraint is learned and the choosing starts again.

`SKIP` holds dependencies that only maintainer scripts have; no script runs here. Programs need not depend on essential
packages (Debian Policy, 3.5), so that whoever depends on dpkg means what its scripts call. An application that calls a
program of an essential package (`sh`, `ls`, `awk`) asks for that package by name.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from builder.errors import BuilderError
from builder.sources.control import Group, Relation, relations
from builder.sources.packages import Index, Package

SKIP: Mapping[str, Collection[str]] = {
    "*": frozenset(
        {
            "adduser",  # scripts that make system users
            "cdebconf",  # provides debconf-2.0
            "debconf",  # questions while installing
            "debconf-2.0",
            "dpkg",  # dpkg-maintscript-helper, dpkg-divert, triggers
            "emacsen-common",  # compiles Emacs Lisp
            "init-d-script",  # provided by sysvinit-utils
            "init-system-helpers",  # deb-systemd-helper, update-rc.d
            "install-info",
            "lsb-base",  # shell functions of init scripts
            "runit-helper",
            "sysvinit-utils",  # the functions of lsb-base since bookworm
            "ucf",  # configuration files that scripts make
            "update-inetd",
        }
    ),
    "base-files": frozenset({"awk"}),
    "bash": frozenset({"debianutils"}),  # add-shell
    "ca-certificates": frozenset({"openssl"}),  # update-ca-certificates: the bundle is made here
    "dash": frozenset({"debianutils"}),
    "openssh-client": frozenset({"passwd"}),  # the group of ssh-agent
}
"""By the name of the package that depends (`*`: any): a group whose alternatives are all among these is left out."""

_ROUNDS = 64


class ResolutionError(BuilderError):
    """No set of packages satisfies what is asked for."""

    hint = "correct the packages of the profile"


@dataclass(frozen=True)
class Solution:
    """The chosen packages, sorted by name; `needs` holds, for each, the chosen ones that it depends on."""

    packages: tuple[Package, ...]
    needs: Mapping[str, tuple[str, ...]]

    def closure(self, names: Collection[str]) -> tuple[str, ...]:
        """The names and what they need, sorted; raises KeyError for a name that is not chosen."""
        found: set[str] = set()
        todo = list(names)
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                todo += self.needs[name]
        return tuple(sorted(found))


def solve(
    index: Index,
    requests: Collection[str],
    *,
    prefer: Mapping[str, str] | None = None,
    skip: Mapping[str, Collection[str]] = SKIP,
) -> Solution:
    """Chooses packages for the requests (`name` or `name=version`); `prefer` gives versions to keep where possible."""
    constraints: dict[str, list[_Constraint]] = {}
    for _ in range(_ROUNDS):
        attempt = _Attempt(index, prefer or {}, skip, constraints)
        try:
            attempt.run(requests)
        except _LateError as late:
            constraints.setdefault(late.name, []).append(late.constraint)
        else:
            return attempt.solution()
    raise ResolutionError(f"the packages {', '.join(sorted(requests))} constrain one another without end")


@dataclass(frozen=True)
class _Constraint:
    """What one package demands of another's version: the relation, or (`breaks`) its opposite."""

    relation: Relation
    by: str
    breaks: bool = False

    def allows(self, package: Package) -> bool:
        return self.breaks is not self.relation.allows(package.version)

    def __str__(self) -> str:
        return f"{self.by} {'breaks' if self.breaks else 'needs'} {self.relation}"


class _LateError(Exception):
    """A constraint on a package that is chosen already, in a version that it does not allow."""

    def __init__(self, name: str, constraint: _Constraint) -> None:
        self.name = name
        self.constraint = constraint


class _Attempt:
    def __init__(
        self,
        index: Index,
        prefer: Mapping[str, str],
        skip: Mapping[str, Collection[str]],
        constraints: Mapping[str, Sequence[_Constraint]],
    ) -> None:
        self._index = index
        self._prefer = prefer
        self._skip = skip
        self._constraints = constraints
        self._chosen: dict[str, Package] = {}
        self._asked_by: dict[str, str] = {}
        self._fresh: deque[Package] = deque()
        self._open: list[tuple[str, Group]] = []

    def run(self, requests: Collection[str]) -> None:
        for text in sorted(set(requests)):
            self._require(_requested(text), "")
        while self._fresh or self._open:
            if self._fresh:
                self._expand(self._fresh.popleft())
                continue
            self._open = [(by, group) for by, group in self._open if not self._satisfying(group)]
            if self._open:
                self._decide(*self._open.pop(0))
        self._check_conflicts()

    def solution(self) -> Solution:
        needs = {
            name: tuple(sorted({other for group in self._groups(package) for other in self._satisfying(group)[:1]}))
            for name, package in self._chosen.items()
        }
        return Solution(tuple(self._chosen[name] for name in sorted(self._chosen)), needs)

    def _expand(self, package: Package) -> None:
        """Follows the dependencies that have one answer, keeps the others for later."""
        for group in self._groups(package):
            if len(group) == 1 and (group[0].name in self._index or not self._index.providers(group[0].name)[1:]):
                if not self._satisfying(group):
                    self._require(group[0], package.name)
            else:
                self._open.append((package.name, group))

    def _groups(self, package: Package) -> Iterable[Group]:
        """The dependencies of a package that count here: without those of scripts and of other architectures."""
        skipped = {*self._skip.get("*", ()), *self._skip.get(package.name, ())}
        for group in package.depends:
            if not all(relation.name in skipped for relation in group):
                yield tuple(relation for relation in group if self._is_here(relation)) or group

    def _is_here(self, relation: Relation) -> bool:
        return relation.qualifier in ("", "any", "native", self._index.architecture)

    def _satisfying(self, group: Group) -> list[str]:
        """The chosen packages that satisfy a group, of its first alternative that has one."""
        for relation in group:
            own = self._chosen.get(relation.name)
            if own is not None and own.satisfies(relation):
                return [own.name]
            found = sorted(name for name, package in self._chosen.items() if package.satisfies(relation))
            if found:
                return found
        return []

    def _decide(self, by: str, group: Group) -> None:
        """Takes the first alternative that exists."""
        for relation in group:
            if self._is_here(relation) and relation.name not in self._chosen and self._possible(relation):
                self._require(relation, by)
                return
        self._require(group[0], by)

    def _possible(self, relation: Relation) -> list[Package]:
        """The packages that satisfy a relation and all constraints so far, best first."""
        own = sorted(
            self._index.candidates(relation.name),
            key=lambda package: package.version != self._prefer.get(package.name),
        )
        return self._usable(own, relation) or self._usable(self._index.providers(relation.name), relation)

    def _usable(self, packages: Iterable[Package], relation: Relation) -> list[Package]:
        return [package for package in packages if package.satisfies(relation) and self._allowed(package)]

    def _allowed(self, package: Package) -> bool:
        return all(constraint.allows(package) for constraint in self._constraints.get(package.name, ()))

    def _require(self, relation: Relation, by: str) -> None:
        """Chooses a package for a relation that nothing chosen satisfies."""
        if relation.name in self._chosen:
            if self._chosen[relation.name].satisfies(relation):
                return
            raise _LateError(relation.name, _Constraint(relation, by or "the profile"))
        possible = self._possible(relation) if self._is_here(relation) else []
        if not possible:
            raise self._impossible(relation, by)
        package = possible[0]
        if package.name in self._chosen:
            return
        self._chosen[package.name] = package
        self._asked_by[package.name] = by
        self._fresh.append(package)

    def _impossible(self, relation: Relation, by: str) -> ResolutionError:
        name = relation.name
        candidates = self._index.candidates(name)
        if candidates:
            known = "".join(f"; {constraint}" for constraint in self._constraints.get(name, ()))
            return ResolutionError(
                f"no version of {name} satisfies: {by or 'the profile'} needs {relation}{known}{self._chain(by)}; "
                f"there is {_versions(candidates)}"
            )
        similar = self._index.similar(name)
        hint = f"did you mean {', '.join(similar)}?" if similar else None
        if by:
            return ResolutionError(
                f"{by} needs {relation}, which the archive does not have{self._chain(by)}", hint=hint
            )
        return ResolutionError(f"the archive has no package {name!r} for {self._index.architecture}", hint=hint)

    def _check_conflicts(self) -> None:
        for name in sorted(self._chosen):
            for relation in self._chosen[name].conflicts:
                for other in sorted(self._chosen):
                    if other != name and self._is_here(relation) and self._chosen[other].satisfies(relation):
                        raise self._conflict(name, relation, other)

    def _conflict(self, name: str, relation: Relation, other: str) -> Exception:
        """A new start with another version of the other package, if one goes with this one."""
        constraint = _Constraint(relation, name, breaks=True)
        if relation.name == other and any(
            constraint.allows(each) and self._allowed(each) for each in self._index.candidates(other)
        ):
            return _LateError(other, constraint)
        package, against = self._chosen[name], self._chosen[other]
        return ResolutionError(
            f"{name} {package.version} conflicts with {relation}, and {other} {against.version} is that"
            f"{self._chain(name)}{self._chain(other)}",
            hint=f"leave out {name} or {other}",
        )

    def _chain(self, name: str) -> str:
        """Who asked for a package, from the profile on, for messages."""
        chain = []
        while name in self._chosen and name not in chain:
            chain.append(name)
            name = self._asked_by[name]
        return f" (asked for: {' -> '.join(reversed(chain))})" if len(chain) > 1 else ""


def _requested(text: str) -> Relation:
    """`name` or `name=version`."""
    name, equals, wanted = (part.strip() for part in text.partition("="))
    try:
        ((relation,),) = relations(f"{name} (= {wanted})" if equals else name)
    except ValueError as error:
        raise ResolutionError(f"not a package: {text!r}", hint="write NAME or NAME=VERSION") from error
    return relation


def _versions(candidates: Sequence[Package]) -> str:
    return ", ".join(package.version for package in candidates) or "none"
