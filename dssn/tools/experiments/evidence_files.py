"""Writes the results of short trainings: a table, JSON, and an archive of the runs' records."""
import io
import json
import os
import tarfile
import time

from dssn.atomic import write_atomically
from dssn.errors import UserError
from dssn.run import metrics
from dssn.run.metrics import ROLES
from dssn.tools.report import markdown_table

REHEARSAL_NOTE = 'rehearsed on a CPU: no number of this table is evidence'
INTERVAL = 10  # seconds between writes while no run ends
PACKED = ('config.yaml', 'metrics.jsonl', 'train.log')
SHOWN = ('epoch', 'iteration', 'student', 'teacher', 'student_iou', 'teacher_iou', 'seconds',
         'peak_memory_mib', 'lists')
COLUMNS = ('run', 'seed', 'method', 'steps', 'labeled', 'student', 'teacher', 'over supervised',
           'seconds', 'MiB', 'state')


class EvidenceFiles:
    """Writes evidence.md, evidence.json and runs.tar.gz into a folder; each replaced atomically.

    Raises:
        UserError: the folder is a file, or cannot be written.
    """

    def __init__(self, folder, rehearsed):
        self.folder, self.rehearsed = folder, rehearsed
        self.facts, self.runs, self.reference = {}, [], ''
        self.written, self.known = 0.0, -1
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise UserError(f'OUT {folder}: is a file; name a folder for the results')
        try:
            os.makedirs(folder, exist_ok=True)
            self.replace('evidence.md', 'Nothing has been trained yet.\n')
        except OSError as error:
            raise UserError(f'OUT {folder}: cannot be written ({error.strerror}); name another '
                            'folder') from None

    def open(self, facts, runs, reference):
        """Write the files before the first run.

        Args:
            facts: {name: value} for evidence.json. runs: `PlannedRun`s.
            reference: variant that the others are compared with.
        """
        self.facts, self.runs, self.reference = facts, runs, reference
        self.write([])

    def update(self, outcomes):
        """Write the files if a run has ended since the last write, or INTERVAL has passed."""
        if len(outcomes) > self.known or time.time() - self.written > INTERVAL:
            self.write(outcomes)

    def write(self, outcomes):
        """Write all files; returns the table, Markdown."""
        self.written, self.known = time.time(), len(outcomes)
        by_run = {outcome.planned.name: outcome for outcome in outcomes}
        entries = [run_entry(planned, by_run.get(planned.name)) for planned in self.runs]
        table = self.table(entries)
        content = {'rehearsed': self.rehearsed, **self.facts, 'runs': entries}
        self.replace('evidence.json', json.dumps(content, indent=1))
        self.replace('evidence.md', table)
        self.replace('runs.tar.gz', self.archive())
        return table

    def replace(self, name, content):
        write_atomically(os.path.join(self.folder, name), content)

    def archive(self):
        """An archive (bytes) of the records: VARIANT-seedN/config.yaml and so on."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode='w:gz') as archive:
            for planned in self.runs:
                for name in PACKED:
                    path = os.path.join(planned.folder, name)
                    if os.path.exists(path):
                        with open(path, 'rb') as file:
                            content = file.read()  # before its size is taken: it may be growing
                        info = tarfile.TarInfo(f'{planned.variant}-seed{planned.seed}/{name}')
                        info.size, info.mtime = len(content), int(time.time())
                        archive.addfile(info, io.BytesIO(content))
        return buffer.getvalue()

    def table(self, entries):
        rows = []
        for found in entries:
            base = supervised_reference(found, entries, self.reference)
            gain = '' if base is None or found['student'] is None else \
                f"{found['student'] - base['student']:+.2f}"
            rows.append([found['variant'], str(found['seed']), found['method'],
                         f"{found['steps_done']} of {found['steps']}",
                         str(found['labeled'] or ''), number_text(found['student']),
                         number_text(found['teacher']), gain, number_text(found['seconds'], 0),
                         number_text(found['peak_memory_mib'], 0), found['state']])
        head = [f'**{REHEARSAL_NOTE}**', ''] if self.rehearsed else []
        notes = [f'- {note}' for note in self.notes(entries)]
        return '\n'.join([*head, markdown_table(COLUMNS, rows), '', *notes, ''])

    def notes(self, entries):
        """Lines on how to read the table, and on runs that are missing in it."""
        facts = self.facts
        lines = [f"mIoU on val in percent at the last evaluation; {facts['machine']}; "
                 f"{facts['runs_at_once']} runs at once",
                 '`over supervised`: student minus that of the supervised run with the same seed, '
                 'lists and steps; if there is none, minus that of the first supervised run with '
                 'this seed']
        lines += [f"{found['state']}: {found['variant']}, seed {found['seed']}: {found['reason']}"
                  for found in entries if found['state'] != 'done' and found['reason']]
        return lines + [f'left out: {name}: {why}' for name, why in facts['left_out'].items()]


def run_entry(planned, outcome):
    """The facts about a planned run, for evidence.json; `outcome` is None before its end."""
    path = os.path.join(planned.folder, 'metrics.jsonl')
    found = metrics.evaluations(metrics.read(path), path) if os.path.exists(path) else []
    last = found[-1] if found else {}
    started = os.path.exists(os.path.join(planned.folder, 'config.yaml'))
    state = outcome.state if outcome else 'not finished' if started else 'to do'
    return {'variant': planned.variant, 'seed': planned.seed, 'method': planned.cfg.method,
            'steps': planned.steps, 'steps_done': last.get('iteration', 0), 'state': state,
            'reason': outcome.text if outcome and state != 'done' else '',
            **{role: last.get(role) for role in ROLES},
            'labeled': last.get('lists', {}).get('labeled', {}).get('lines'),
            'seconds': last.get('seconds'), 'peak_memory_mib': last.get('peak_memory_mib'),
            'seconds_with_start': outcome and outcome.seconds, 'machine': last.get('machine'),
            'settings': planned.assignments, 'labeled_list': planned.cfg.labeled_id_path,
            'evaluations': [{key: line.get(key) for key in SHOWN} for line in found]}


def supervised_reference(found, entries, variant):
    """The supervised entry with the same seed that an entry is compared with, or None.

    It has the same labeled list and steps if there is one; else it is that of `variant`.
    """
    others = [other for other in entries if other['method'] == 'supervised' and other is not found
              and other['seed'] == found['seed'] and other['student'] is not None]
    same = [other for other in others if other['labeled_list'] == found['labeled_list']
            and other['steps'] == found['steps'] and found['method'] != 'supervised']
    first = [other for other in others if other['variant'] == variant]
    return (same + first + [None])[0]


def number_text(value, digits=2):
    return '' if value is None else f'{value:.{digits}f}'
