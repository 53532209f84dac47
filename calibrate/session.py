"""A study that is being worked on or looked at: its file and, once they are needed, its database and its pipeline."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from calibrate.progress import Narrator
from calibrate.store import Storage, Store
from calibrate.study_file import StudyFile

if TYPE_CHECKING:
    from calibrate.target import Target


class Session:
    """A study file with its database and its pipeline, each opened when it is first needed."""

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

    @cached_property
    def target(self) -> Target:
        """The pipeline."""
        # Loads torch and diffusers, which those who only look at records need not wait for.
        from calibrate.target import Target

        self.narrator.say(f"Loading the pipeline from {self.file.study.model.path}")
        return Target.load(self.file.model_path, self.file.study.model, self.file.study.generation)

    def start(self) -> Store:
        """The study's records, made if there are none."""
        study = self.file.study
        return Store.open_study(
            self.storage,
            name=study.name,
            yaml_text=self.file.masked_text,
            fixed_parts=study.fixed_parts(),
            settings=self.target.settings.to_dict(),
            model=self.target.model,
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
