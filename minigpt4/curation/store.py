"""The curation store: one SQLite file in WAL mode, one table per step, one row per image.

    pictures   sample     the path of each image; its key everywhere is the sha256 of its file
    answers    generate   both raw answers and the joined text
    fixes      fix        the LLM's version, why the original was kept if it was, the difference, tokens
    verdicts   filter     the rule that rejected a text, or NULL
    decisions  verify     accept, edit or reject
    pairs      pairs      two sampled answers about each picture, and why they are not to be compared if they are not
    readings   judge      which of the two a judge found to invent less; swapped_readings: shown in the other order
    runs       every step: model, prompt, decoding, seed; each row names the run that wrote it

A step only inserts, into its own table, and a row is committed and synced before it counts as done. So a killed process
loses only what was not committed, and the same command does the rest.
"""

import contextlib
import json
import sqlite3
import threading
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

APPLICATION_ID = 0x4D475034  # "MGP4" in the file's header tells a store from other SQLite files
TABLES = {
    "sample": "pictures",
    "generate": "answers",
    "fix": "fixes",
    "filter": "verdicts",
    "verify": "decisions",
    "pairs": "pairs",
    "judge": "readings",
    "judge swapped": "swapped_readings",
}
BEFORE = {  # the table or view with the pictures that a step can do
    "generate": "pictures",
    "fix": "answers",
    "filter": "fixes",
    "verify": "verdicts",
    "pairs": "pictures",
    "judge": "comparable_pairs",
    "judge swapped": "clear_readings",
}
VIEWS = dict.fromkeys(("pairs", "judge", "judge swapped"), "preferences")  # of the other steps it is `captions`

# Migrations from version N to N + 1; a new store goes through all of them.
MIGRATIONS = (
    (
        "CREATE TABLE runs (id INTEGER PRIMARY KEY, step TEXT NOT NULL, settings TEXT NOT NULL, started TEXT NOT NULL,"
        " UNIQUE (step, settings))",
        "CREATE TABLE pictures (picture TEXT PRIMARY KEY, name TEXT NOT NULL, path TEXT NOT NULL, run INTEGER, time TEXT)",
        "CREATE INDEX pictures_by_name ON pictures (name)",
        "CREATE TABLE answers (picture TEXT PRIMARY KEY, first TEXT NOT NULL, continued TEXT, text TEXT NOT NULL,"
        " run INTEGER, time TEXT)",
        "CREATE TABLE fixes (picture TEXT PRIMARY KEY, answer TEXT NOT NULL, problem TEXT, text TEXT NOT NULL,"
        " diff TEXT NOT NULL, prompt_tokens INTEGER, completion_tokens INTEGER, run INTEGER, time TEXT)",
        "CREATE TABLE verdicts (picture TEXT PRIMARY KEY, rule TEXT, detail TEXT, run INTEGER, time TEXT)",
        "CREATE TABLE bands (band INTEGER, picture TEXT, PRIMARY KEY (band, picture)) WITHOUT ROWID",
        "CREATE TABLE decisions (picture TEXT PRIMARY KEY, decision TEXT NOT NULL, text TEXT NOT NULL, reviewer TEXT,"
        " run INTEGER, time TEXT)",
    ),
    (  # several people at once, and looking at pictures by rule
        "CREATE TABLE leases (picture TEXT PRIMARY KEY, holder TEXT NOT NULL, until REAL NOT NULL)",
        "CREATE INDEX leases_by_holder ON leases (holder)",
        "CREATE INDEX verdicts_by_rule ON verdicts (rule, picture)",
        "CREATE VIEW captions AS SELECT pictures.picture, pictures.path, answers.text AS answer, fixes.text AS text,"
        " fixes.problem, fixes.diff, verdicts.picture IS NOT NULL AS filtered, verdicts.rule, verdicts.detail,"
        " decisions.decision, decisions.text AS decided_text, decisions.reviewer FROM pictures"
        " LEFT JOIN answers USING (picture) LEFT JOIN fixes USING (picture) LEFT JOIN verdicts USING (picture)"
        " LEFT JOIN decisions USING (picture)",
    ),
    (  # preferences: `better` is 'first', 'second', or NULL for a tie and for what cannot be read
        "CREATE TABLE pairs (picture TEXT PRIMARY KEY, question TEXT NOT NULL, first TEXT NOT NULL, second TEXT NOT NULL,"
        " problem TEXT, run INTEGER, time TEXT)",
        *(
            f"CREATE TABLE {table} (picture TEXT PRIMARY KEY, reply TEXT NOT NULL, readable INTEGER NOT NULL, better TEXT,"
            " prompt_tokens INTEGER, completion_tokens INTEGER, run INTEGER, time TEXT)"
            for table in ("readings", "swapped_readings")
        ),
        "CREATE VIEW comparable_pairs AS SELECT * FROM pairs WHERE problem IS NULL",
        "CREATE VIEW clear_readings AS SELECT * FROM readings WHERE better IS NOT NULL",
        "CREATE VIEW preferences AS SELECT pictures.picture, pictures.path, pairs.question, pairs.first, pairs.second,"
        " pairs.problem, CASE WHEN readings.better = swapped_readings.better THEN readings.better END AS chosen"
        " FROM pictures LEFT JOIN pairs USING (picture) LEFT JOIN readings USING (picture)"
        " LEFT JOIN swapped_readings USING (picture)",
    ),
)
_PAGE = 256  # rows read at a time


class Store:
    """An open store; a context manager. Safe to share between threads.

    Args:
        path: the file; created if `create`, otherwise it must exist.

    Raises:
        ValueError: no such store, another kind of file, or a store of a newer version.
        OSError: it cannot be read or written: read-only, disk full, locked by another process for a minute. Every method
            may raise these; what was recorded before is safe.
    """

    def __init__(self, path, create=False):
        self.path = Path(path)
        if not create and not self.path.is_file():
            raise ValueError(f"{path}: no such curation store; `minigpt4 curate sample --store {path}` makes it")
        self._lock = threading.RLock()
        with self._explained():
            self._connection = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
            self._connection.row_factory = sqlite3.Row
            self._prepare()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Closes the file."""
        self._connection.close()

    def rows(self, sql, *arguments):
        """A query's rows, all of them."""
        with self._lock, self._explained():
            return self._connection.execute(sql, arguments).fetchall()

    def value(self, sql, *arguments):
        """The first column of a query's first row, or None."""
        found = self.rows(f"{sql} LIMIT 1", *arguments)
        return found[0][0] if found else None

    @contextlib.contextmanager
    def transaction(self):
        """A transaction: yields `execute(sql, arguments)`. Synced to disk when the outermost block ends."""
        with self._lock, self._explained():
            if self._connection.in_transaction:
                yield self._connection.execute
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection.execute
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def run(self, step, settings):
        """The id of a step's run with these settings (a JSON-compatible dict); resuming is the same run."""
        settings = json.dumps(settings, sort_keys=True, ensure_ascii=False)
        with self.transaction() as execute:
            execute("INSERT OR IGNORE INTO runs (step, settings, started) VALUES (?, ?, ?)", (step, settings, now()))
        return self.value("SELECT id FROM runs WHERE step = ? AND settings = ?", step, settings)

    def record(self, step, run, rows):
        """Inserts a step's rows, dicts with at least "picture", in one transaction. Existing rows are not changed.

        Returns how many were new.
        """
        new = 0
        with self.transaction() as execute:
            for row in rows:
                values = {"time": now(), **row, "run": run}
                places = ", ".join("?" * len(values))
                sql = f"INSERT OR IGNORE INTO {TABLES[step]} ({', '.join(values)}) VALUES ({places})"
                new += execute(sql, tuple(values.values())).rowcount
        return new

    def pending(self, step):
        """Rows of the step's view for every pending image that it can process, by key; lazily.

        Memory does not grow with the store, and rows may be recorded while it is read.
        """
        last, view = "", VIEWS.get(step, "captions")
        while page := self.rows(
            f"SELECT {view}.* FROM (SELECT picture FROM pictures WHERE picture > ?"
            f" AND EXISTS (SELECT 1 FROM {BEFORE[step]} AS b WHERE b.picture = pictures.picture)"
            f" AND NOT EXISTS (SELECT 1 FROM {TABLES[step]} AS t WHERE t.picture = pictures.picture)"
            f" ORDER BY picture LIMIT ?) JOIN {view} USING (picture) ORDER BY picture",
            last,
            _PAGE,
        ):
            yield from page
            last = page[-1]["picture"]

    def pending_count(self, step):
        """How many rows `pending` has."""
        return self.value(
            f"SELECT COUNT(*) FROM pictures WHERE EXISTS (SELECT 1 FROM {BEFORE[step]} AS b"
            f" WHERE b.picture = pictures.picture) AND NOT EXISTS (SELECT 1 FROM {TABLES[step]} AS t"
            " WHERE t.picture = pictures.picture)"
        )

    def count(self, step):
        """How many images a step has done."""
        return self.value(f"SELECT COUNT(*) FROM {TABLES[step]}")

    def runs(self, step):
        """[(settings, rows written), ...] of a step's runs."""
        return [
            (json.loads(row["settings"]), row["n"])
            for row in self.rows(
                f"SELECT settings, (SELECT COUNT(*) FROM {TABLES[step]} WHERE run = runs.id) AS n FROM runs"
                " WHERE step = ? ORDER BY id",
                step,
            )
        ]

    @contextlib.contextmanager
    def only_one(self, step):
        """Locks the step for this process: two at once would do, and pay for, everything twice."""
        lock = FileLock(f"{self.path}.{step}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"{self.path}: another process is running {step} on it; wait for it or stop it") from None
        try:
            yield
        finally:
            lock.release()

    def place(self, path):
        """The path of an image's file, from a row's `path`, which is relative to the store's folder if it is kept there."""
        return self.path.parent / path

    def _prepare(self):
        execute = self._connection.execute
        version = execute("PRAGMA user_version").fetchone()[0]
        empty = execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0] == 0
        if not empty and execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise ValueError(f"{self.path}: an SQLite file, but not a curation store")
        if version > len(MIGRATIONS):
            raise ValueError(
                f"{self.path}: a store of version {version}, this program knows up to {len(MIGRATIONS)}; update minigpt4-hf"
            )
        if execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = FULL")  # a commit is on disk when it returns
        if version < len(MIGRATIONS):
            with self.transaction() as execute:  # another process may have been faster
                version = execute("PRAGMA user_version").fetchone()[0]
                for statement in (s for migration in MIGRATIONS[version:] for s in migration):
                    execute(statement)
                execute(f"PRAGMA application_id = {APPLICATION_ID}")
                execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    @contextlib.contextmanager
    def _explained(self):
        """SQLite's errors as one line that names the file."""
        try:
            yield
        except sqlite3.OperationalError as error:
            hint = "make room" if "full" in str(error) else "it and its folder must be writable and on a local disk"
            raise OSError(f"{self.path}: {error} ({hint}); what was recorded before is kept") from error
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self.path}: not a curation store, or damaged ({error})") from error


def now():
    """The time in UTC as ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
