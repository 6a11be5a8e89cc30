"""What a translation has to say beside the recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

__all__ = ['CannotError', 'Note', 'Notes']


class CannotError(Exception):
    """A part of a config that has no counterpart here; the message says why."""


class Note(NamedTuple):
    """A remark on one line of a config.

    Attributes:
        where: The line, as ``model.distiller.distill_losses.loss_kl``.
        text: What became of it, and why.
        changes: Whether the recipe computes something else for that.
    """

    where: str
    text: str
    changes: bool


class Notes(list[Note]):
    """All remarks on a config."""

    def changed(self, where: str, text: str) -> None:
        """Say that the recipe computes something else than a line does."""
        self.append(Note(where, text, changes=True))

    def known(self, where: str, text: str) -> None:
        """Say something of a line that is carried over, or was without effect."""
        self.append(Note(where, text, changes=False))

    def lines(self) -> Iterator[str]:
        """The remarks, each sort under a title that ends in a colon; equal ones in one.

        Examples:
            >>> notes = Notes()
            >>> notes.changed('a.b0', 'left out')
            >>> notes.changed('a.b1', 'left out')
            >>> [*notes.lines()]
            ['Not the same:', 'a.b0, b1: left out']
        """
        for changes, title in ((True, 'Not the same:'), (False, 'To know:')):
            places: dict[str, list[str]] = {}
            for note in self:
                if note.changes is changes:
                    places.setdefault(note.text, []).append(note.where)
            if places:
                yield title
            for text, (first, *others) in places.items():
                more = ''.join(f', {other.rpartition(".")[2]}' for other in others)
                yield f'{first}{more}: {text}'
