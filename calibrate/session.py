"""A study that is being worked on or looked at: its file and, once it is needed, its database."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from calibrate.progress import Narrator
from calibrate.store import Storage, Store
from calibrate.study.study_file import StudyFile

if TYPE_CHECKING:
    from calibrate.measure.describe import Description


class Session:
    """A study file with its database, which is opened when it is first needed."""

    def __init__(self, file: StudyFile, narrator: Narrator, *, create: bool) -> None:
        """Opens nothing yet.

        Args:
            file: The study.
            narrator: Told of what happens.
            create: Whether a database that is not there is made.
        """
        self.started = time.monotonic()
        self.file = file
        self.narrator = narrator
        self.create = create
        self._opened = contextlib.ExitStack()

    @cached_property
    def storage(self) -> Storage:
        """The database, open until the session is closed."""
        storage = Storage(self.file.study.storage_url, create=self.create, told=self.narrator.say)
        self._opened.callback(storage.close)
        return storage

    def close(self) -> None:
        """Closes the database, if it was opened."""
        self._opened.close()

    def start(self, target: Description) -> Store:
        """The study's records, made if there are none, for a model that has been loaded."""
        study = self.file.study
        return Store.open_study(
            self.storage,
            name=study.name,
            yaml_text=self.file.masked_text,
            fixed_parts=study.fixed_parts(),
            settings=target.settings.to_dict(),
            model=target.model,
        )

    def find(self) -> Store:
        """The study's records, which must be there."""
        return Store.find_study(self.storage, self.file.study.name)


@contextlib.contextmanager
def open_session(study: Path, narrator: Narrator, *, create: bool = False) -> Iterator[Session]:
    """Reads a study file, and closes at the end what was opened of it."""
    session = Session(StudyFile(study), narrator, create=create)
    try:
        yield session
    finally:
        session.close()
