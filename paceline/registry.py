"""Parts by name: those that Paceline brings, and those that other installed packages add as entry points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

__all__ = ["Registry"]


class Registry:
    """Names of one kind of part. Another package adds one as an entry point of the kind's group:

        [project.entry-points."paceline.tier_policies"]
        newest = "my_package.policies:Newest"

    Nothing is imported before it is asked for.
    """

    def __init__(self, kind: str, group: str, builtin: Mapping[str, str]) -> None:
        """`kind` is what messages call one part, as "policy"; `builtin` has `module:attribute` by name. An entry point
        can't replace one of them."""
        self.kind, self.group = kind, group
        self._builtin = dict(builtin)

    def names(self) -> list[str]:
        """All names, the built-in ones first."""
        return list(self)

    def __iter__(self) -> Iterator[str]:
        """The names, the built-in ones first; installed packages are looked through only behind those."""
        yield from self._builtin
        yield from sorted(name for name in self._added() if name not in self._builtin)

    def __contains__(self, name: str) -> bool:
        """Whether there is a part of this name."""
        return name in self._builtin or name in self._added()

    def load(self, name: str) -> Any:
        """The part of a name. Raises `ValueError` where there is none, or its package can't be imported."""
        if name in self._builtin:
            module, _, attribute = self._builtin[name].partition(":")
            return getattr(import_module(module), attribute)
        found = self._added().get(name)
        if found is None:
            raise ValueError(
                f"there is no {self.kind} {name!r}; there are {', '.join(self.names())}, and packages add others as "
                f"entry points of {self.group}"
            )
        try:
            return found.load()
        except Exception as error:  # whatever the package raises while it is imported
            raise ValueError(f"{self.kind} {name!r}: {found.value} can't be imported: {error}") from error

    def make(self, name: str, options: Mapping[str, Any]) -> Any:
        """The part of a name, made with options. Raises `ValueError` as `load` does, and where the part does not take
        them."""
        kind = self.load(name)
        try:
            return kind(**options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.kind} {name}: {error}") from error

    def _added(self) -> dict[str, EntryPoint]:
        return _entry_points(self.group)


@cache
def _entry_points(group: str) -> dict[str, EntryPoint]:
    """By name. To look through all installed packages takes long, and they stay what they are."""
    return {each.name: each for each in entry_points(group=group)}
