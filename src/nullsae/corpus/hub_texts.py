"""Texts of a data set of the hub, or of a local folder that `datasets` reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nullsae.config.corpora import HubSource
from nullsae.config.model_files import is_local
from nullsae.core.errors import UserError, first_line
from nullsae.core.folders import expanded
from nullsae.corpus.columns import no_column, path_of, text_of
from nullsae.corpus.hub import check_repository

# The file that a data set's `save_to_disk` leaves in its folder.
SAVED = "state.json"
# What a source's `split` says if it is not given.
ANY_SPLIT = "train"


class HubTexts:
    """Texts of a data set of the hub; a streamed one can be resumed."""

    def __init__(self, source: HubSource, where: str) -> None:
        self._source, self._where = source, where
        self._name = f"the data set {source.path!r}"
        self._dataset: Any = None
        self._version: list[str | None] = []
        """Version of the library, and commit; a state is valid only for these."""
        self._n_read = 0
        self._given: Any = None
        """The position to resume from, until the first text."""
        self._texts = self._read()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._texts)

    def state(self) -> dict[str, Any] | None:
        """Return the file and row of a stream."""
        if self._dataset is None or not self._source.streaming:
            return None
        # A data set has no state before it is read.
        rows = self._given or self._dataset.state_dict()
        return {"version": self._version, "n_read": self._n_read, "rows": rows}

    def go_on(self, state: dict[str, Any]) -> bool:
        """Resume from a state of the same version.

        Only three files are fetched again: the first, for its columns, the current one, and the one
        before.

        Raises:
            UserError: as at the first text.
        """
        self._load()
        if state["version"] != self._version:
            return False
        self._dataset.load_state_dict(state["rows"])
        self._n_read, self._given = state["n_read"], state["rows"]
        return True

    def _load(self) -> None:
        source, where = self._source, self._where
        commit = check_repository(
            source.path, kind="dataset", revision=source.revision, where=f"{where}.path"
        )
        with self._in_a_line():
            import datasets  # takes 2 s, and only this kind of source needs it

            path = str(expanded(source.path)) if is_local(source.path) else source.path
            if Path(path, SAVED).is_file():
                dataset = self._saved(datasets.load_from_disk(path))
            else:
                dataset = datasets.load_dataset(
                    path,
                    name=source.name,
                    split=source.split,
                    revision=source.revision,
                    streaming=source.streaming,
                )
            # A stream may not know its columns before its first row; then each row is checked.
            if (names := dataset.column_names) is not None:
                if (top := path_of(source.column, names)[0]) not in names:
                    raise no_column(self._name, source.column, names, where)
                dataset = dataset.select_columns([top])
        self._dataset, self._version = dataset, [datasets.__version__, commit]

    def _saved(self, dataset: Any) -> Any:
        """Return a data set that `save_to_disk` wrote, which is one split, as the source reads it.

        A folder with several splits is read by `load_dataset`.
        """
        source, own = self._source, str(dataset.split or ANY_SPLIT)
        if source.split not in (own, ANY_SPLIT):
            raise UserError(f"{self._where}.split: {self._name} holds only {own!r}; write that")
        return dataset.to_iterable_dataset() if source.streaming else dataset

    def _read(self) -> Iterator[str]:
        if self._dataset is None:
            self._load()
        with self._in_a_line():
            for row in self._dataset:
                at = f"{self._name}, row {self._n_read}"
                self._n_read, self._given = self._n_read + 1, None
                yield text_of(row, self._source.column, at, self._where)

    @contextmanager
    def _in_a_line(self) -> Iterator[None]:
        try:
            yield
        except (UserError, GeneratorExit):
            raise
        except Exception as error:  # anything that a loader of foreign data may raise
            is_wrapped = type(error).__name__ == "DatasetGenerationError"
            cause = (is_wrapped and error.__cause__) or error
            raise UserError(
                f"{self._where}: {self._name} could not be read: {first_line(cause)}"
            ) from None
