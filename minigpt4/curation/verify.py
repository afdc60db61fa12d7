"""Step 5: people accept, edit or reject; their decisions are kept in the store and in a JSONL file.

    {"picture": HASH, "decision": "accept" | "edit" | "reject", "text": ..., "reviewer": ..., "time": ...}

`Desk` assigns images to reviewers: each to one reviewer at a time, and again to others if nothing is decided in ten
minutes. A decision is on disk before `decide` returns. Decisions never replace each other: the first one counts.
"""

import json
import os
import time
from pathlib import Path

from minigpt4.durable_files import write_bytes

from .counts import Report
from .store import now

DECISIONS = ("accept", "edit", "reject")
LEASE_SECONDS = 600
PASSED = "passed"  # instead of a rule's name: what no rule rejected


class Desk:
    """Gives images to reviewers and takes their decisions; safe to share between threads.

    Args:
        store: the store.
        file: a `DecisionsFile` to keep up to date, or None.
    """

    def __init__(self, store, file=None):
        self.store, self.file = store, file
        self._run = store.run("verify", {"decisions": list(DECISIONS)})
        self._first = {}  # by rule: no image before this one is waiting for a decision
        self._progress = {}  # by rule: [decided, all]; counting a million rows at each decision would take a second

    def next(self, reviewer, rule=PASSED):
        """The next `captions` row for a reviewer, assigned to them; None if none is left."""
        with self.store.transaction() as execute:
            picture = self._lent(reviewer, rule) or self._waiting(reviewer, rule)
            if picture is None:
                return None
            execute("DELETE FROM leases WHERE holder = ? OR picture = ?", (reviewer, picture))
            execute("INSERT INTO leases VALUES (?, ?, ?)", (picture, reviewer, time.time() + LEASE_SECONDS))
        return self.row(picture)

    def row(self, picture):
        """A picture's `captions` row, or None."""
        return next(iter(self.store.rows("SELECT * FROM captions WHERE picture = ?", picture)), None)

    def decide(self, reviewer, picture, decision, text):
        """Records a decision and returns True; False if there already was one, which is kept.

        Raises:
            ValueError: not a decision, a picture without a text to decide on, or an accepted text that is empty.
        """
        row = checked(self.store, {"picture": picture, "decision": decision, "text": text, "reviewer": reviewer})
        with self.store.transaction() as execute:
            new = self.store.record("verify", self._run, [row])
            execute("DELETE FROM leases WHERE picture = ?", (picture,))
            self._count(picture, new)
        if new and self.file:
            self.file.append([row])
        return bool(new)

    def undo(self, reviewer):
        """Undoes the reviewer's last decision, and assigns them the image; returns its row, or None."""
        last = self.store.value("SELECT picture FROM decisions WHERE reviewer = ? ORDER BY rowid DESC", reviewer)
        if last is None:
            return None
        with self.store.transaction() as execute:
            execute("DELETE FROM decisions WHERE picture = ? AND reviewer = ?", (last, reviewer))
            self._count(last, -1)
            execute("DELETE FROM leases WHERE holder = ? OR picture = ?", (reviewer, last))
            execute("INSERT INTO leases VALUES (?, ?, ?)", (last, reviewer, time.time() + LEASE_SECONDS))
        self._first.clear()
        if self.file:
            self.file.remove(last)
        return self.row(last)

    def progress(self, rule=PASSED):
        """(decided, waiting): counts of the images that a rule rejected, or that passed all rules."""
        if rule not in self._progress:
            decided = "SELECT COUNT(*) FROM decisions JOIN verdicts USING (picture) WHERE verdicts.rule IS ?"
            every = "SELECT COUNT(*) FROM verdicts WHERE rule IS ?"
            self._progress[rule] = [self.store.value(sql, _rule(rule)) for sql in (decided, every)]
        decided, every = self._progress[rule]
        return decided, every - decided

    def rules(self):
        """{rule: number of images}, starting with those that passed; counted on each call."""
        self._progress.clear()
        found = self.store.rows("SELECT rule, COUNT(*) AS n FROM verdicts GROUP BY rule ORDER BY rule IS NOT NULL, n DESC")
        return {row["rule"] or PASSED: row["n"] for row in found}

    def search(self, words="", rule=None, after="", limit=50):
        """Rows of `captions` with these words in their text, by key, following `after`; of one rule or all."""
        where, arguments = ["captions.picture > ?", "filtered"], [after]
        if words.strip():
            where.append("(text LIKE ? ESCAPE '\\' OR captions.picture LIKE ? ESCAPE '\\')")
            like = "".join(f"\\{c}" if c in "%_\\" else c for c in words.strip())
            arguments += [f"%{like}%", f"{like}%"]
        if rule is not None:
            where.append("rule IS ?")
            arguments.append(_rule(rule))
        return self.store.rows(
            f"SELECT * FROM captions WHERE {' AND '.join(where)} ORDER BY captions.picture LIMIT ?", *arguments, limit
        )

    def _count(self, picture, new):
        rule = self.store.value("SELECT rule FROM verdicts WHERE picture = ?", picture) or PASSED
        if rule in self._progress:
            self._progress[rule][0] += new

    def _lent(self, reviewer, rule):
        return self.store.value(
            "SELECT picture FROM leases JOIN verdicts USING (picture) WHERE holder = ? AND rule IS ?"
            " AND picture NOT IN (SELECT picture FROM decisions)",
            reviewer,
            _rule(rule),
        )

    def _waiting(self, reviewer, rule):
        waiting = (
            "SELECT v.picture FROM verdicts AS v WHERE v.rule IS ? AND v.picture >= ?"
            " AND NOT EXISTS (SELECT 1 FROM decisions AS d WHERE d.picture = v.picture)"
            " AND EXISTS (SELECT 1 FROM pictures AS p WHERE p.picture = v.picture)"
        )
        order = " ORDER BY v.picture"
        self._first[rule] = self.store.value(waiting + order, _rule(rule), self._first.get(rule, "")) or "~"
        free = " AND NOT EXISTS (SELECT 1 FROM leases AS l WHERE l.picture = v.picture AND l.holder != ? AND l.until > ?)"
        return self.store.value(waiting + free + order, _rule(rule), self._first[rule], reviewer, time.time())


class DecisionsFile:
    """The JSONL file: read at the start, then a line for every decision, synced to disk.

    Raises:
        ValueError: not readable as text.
        OSError: it cannot be written.
    """

    def __init__(self, path):
        self.path = Path(path)

    def load(self, store):
        """Synchronizes file and store: each gets what only the other has. Returns a `Report`.

        Invalid lines and those about unknown images are reported and stay in the file.
        """
        report, run = Report("verify"), store.run("verify", {"decisions": list(DECISIONS)})
        with store.transaction() as execute:
            execute("CREATE TEMP TABLE in_file (picture TEXT PRIMARY KEY)")
            for number, line in enumerate(self._lines(), 1):
                try:
                    row = checked(store, _parsed(line))
                except ValueError as error:
                    report.failed(f"{self.path}, line {number}: {error}")
                    continue
                execute("INSERT OR IGNORE INTO in_file VALUES (?)", (row["picture"],))
                new = store.record("verify", run, [row])
                report.done += new
                report.already += not new
        missing = (
            "SELECT picture, decision, text, reviewer, time FROM decisions"
            " WHERE picture NOT IN (SELECT picture FROM in_file)"
        )
        self.append(map(dict, store.rows(missing)))
        with store.transaction() as execute:
            execute("DROP TABLE in_file")
        return report

    def append(self, rows):
        """Appends a line for each decision, after the remains of any interrupted write."""
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if not lines:
            return
        with open(self.path, "ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                lines = lines if file.read(1) == b"\n" else "\n" + lines
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())

    def remove(self, picture):
        """Removes the lines about an image; the file is replaced as a whole."""
        kept = [line for line in self._lines() if f'"{picture}"' not in line]
        write_bytes(self.path, "".join(line.rstrip("\n") + "\n" for line in kept).encode())

    def _lines(self):
        if not self.path.exists():
            return
        try:
            with open(self.path, encoding="utf-8") as file:
                yield from (line for line in file if line.strip())
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}: not a JSONL file in UTF-8 ({error.reason} at byte {error.start})") from error


def checked(store, row):
    """A valid decision: {"picture", "decision", "text", "reviewer", "time"}.

    Raises:
        ValueError: what is wrong with it.
    """
    picture, decision, text = (row.get(name) for name in ("picture", "decision", "text"))
    if decision not in DECISIONS:
        raise ValueError(f"decision is {decision!r}, expected one of {', '.join(DECISIONS)}")
    known = store.value("SELECT COALESCE(text, '') FROM captions WHERE picture = ? AND filtered", str(picture))
    if known is None:
        raise ValueError(f"picture {str(picture)[:12]!r} is not in {store.path}, or has not been filtered yet")
    text = known if text is None or decision == "accept" else str(text).strip()
    if decision == "edit" and not text:
        raise ValueError("an edited text is empty; reject the picture instead")
    reviewer, when = str(row.get("reviewer") or ""), row.get("time")
    when = when if isinstance(when, str) else now()
    return {"picture": picture, "decision": decision, "text": text, "reviewer": reviewer, "time": when}


def _parsed(line):
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(row, dict):
        raise ValueError(f"found {type(row).__name__}, expected an object with picture and decision")
    return row


def _rule(rule):
    return None if rule == PASSED else rule
