"""Runs parts of a measurement, each in a process with a time limit, within one time budget.

A part that crashes, hangs or does not fit into the budget does not affect the others. A callback
gets the results after each part, so that they can be written before the next one ends.
"""
import json
import os
import signal
import subprocess
import time
from typing import Any, Dict, List, NamedTuple

MAX_OUTPUT = 10 ** 6  # characters of a part's output that are kept, the last ones
MAX_LAST_LINE = 300   # characters of its last line, which often is the error
KILL_WAIT = 10        # seconds to wait for a killed process to end
POLL = 0.05           # seconds between two checks of the running parts

PASSED, FAILED = 'passed', 'failed'
TIMED_OUT = 'timed out'    # did not end within the limit of the part: a failure
LEFT_OUT = 'left out'      # not started, since it did not fit into the budget
CUT_OFF = 'cut off'        # started, but the budget ended before it did
FAILURES = (FAILED, TIMED_OUT)


class Part(NamedTuple):
    """One process of a measurement."""
    name: str
    command: List[str]
    needs: float            # it is left out if fewer seconds are left
    limit: float            # seconds after which it is killed
    alone: bool = True      # whether no other part may run at the same time, since it is timed
    result: str = ''        # path of a JSON file that the command writes
    environment: Dict[str, str] = {}
    facts: Dict[str, Any] = {}  # for the page


class PartOutcome(NamedTuple):
    """How a part ended."""
    part: Part
    outcome: str            # PASSED, FAILED, TIMED_OUT, LEFT_OUT or CUT_OFF
    seconds: float
    reason: str = ''        # why it did not pass
    output: str = ''        # the end of its output, including standard error
    found: Any = None       # the content of its JSON file


class Budget:
    """Runs parts in their order until the time is over.

    Args:
        seconds: for all parts together. folder: for the output of the parts, one file each.
        cwd: working directory of the parts; None: that of this process.
        at_once: maximum number of parts at the same time.
        on_end: called after each part with the list of `PartOutcome`s so far, in the order of
            their ends.
    """

    def __init__(self, seconds, folder, cwd=None, at_once=1, on_end=None):
        self.end = time.monotonic() + seconds
        self.folder, self.cwd, self.at_once = folder, cwd, at_once
        self.on_end = on_end or (lambda outcomes: None)
        self.outcomes, self.running = [], []

    def left(self):
        """Seconds until the time is over."""
        return self.end - time.monotonic()

    def run(self, parts):
        """Run the parts; returns their `PartOutcome`s. An exception here ends the running parts."""
        try:
            for part in parts:
                self.wait_for_room(part)
                if self.left() < part.needs:
                    self.add(PartOutcome(part, LEFT_OUT, 0.0, f'needs about {part.needs:.0f} s, '
                                         f'{max(self.left(), 0):.0f} s were left'))
                else:
                    self.running.append(PartProcess(part, self.folder, self.cwd, self.left()))
            while self.running:
                self.collect_ended()
        finally:
            for process in self.running:
                process.kill()
        return self.outcomes

    def wait_for_room(self, part):
        """Wait until the part may start."""
        def is_full():
            if part.alone or any(process.part.alone for process in self.running):
                return bool(self.running)
            return len(self.running) >= self.at_once
        while is_full():
            self.collect_ended()

    def collect_ended(self):
        """Add the outcomes of the parts that have ended; wait a moment if none has."""
        ended = [process for process in self.running if process.has_ended()]
        for process in ended:
            self.running.remove(process)
            self.add(process.outcome())
        if not ended:
            time.sleep(POLL)

    def add(self, outcome):
        self.outcomes.append(outcome)
        self.on_end(self.outcomes)


class PartProcess:
    """A running part, in its own process group.

    Args:
        left: seconds until the end of the budget.
    """

    def __init__(self, part, folder, cwd, left):
        self.part, self.started = part, time.monotonic()
        self.cut_off = left < part.limit
        self.end = self.started + min(left, part.limit)
        self.killed, self.error = False, None
        self.path = os.path.join(folder, f'{id(self)}.txt')
        with open(self.path, 'wb') as output:
            try:
                self.process = subprocess.Popen(
                    part.command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=output,
                    stderr=subprocess.STDOUT, env={**os.environ, **part.environment},
                    start_new_session=True)
            except OSError as error:
                self.process, self.error = None, error

    def has_ended(self):
        """Whether the process has ended or was killed; kills it after its time limit."""
        if self.process is None or self.process.poll() is not None:
            return True
        if time.monotonic() >= self.end:
            self.killed = True
            self.kill()
        return self.killed

    def kill(self):
        """Kill the process and all processes that it started."""
        if self.process is None:
            return
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has ended by itself
        try:
            self.process.wait(KILL_WAIT)
        except subprocess.TimeoutExpired:
            pass  # it hangs in a GPU driver; the next parts may still work

    def outcome(self):
        seconds = time.monotonic() - self.started
        output = self.output()
        if self.error is not None:
            return PartOutcome(self.part, FAILED, seconds, f'could not be started: {self.error}')
        if self.killed:
            kind, reason = (CUT_OFF, 'not finished when the time was over') if self.cut_off else \
                (TIMED_OUT, f'not finished after {self.part.limit:.0f} s')
            return PartOutcome(self.part, kind, seconds, reason, output, self.found()[0])
        status = self.process.returncode
        found, problem = self.found()
        if status:
            problem = f'killed by signal {-status}' if status < 0 else f'exit status {status}'
            last = output.strip().rsplit('\n', 1)[-1][:MAX_LAST_LINE]
            problem += f': {last}' if last else ''
        return PartOutcome(self.part, FAILED if problem else PASSED, seconds, problem, output,
                           found)

    def output(self):
        """The end of the output of the process."""
        with open(self.path, encoding='utf-8', errors='replace') as file:
            return file.read()[-MAX_OUTPUT:]

    def found(self):
        """(content of the part's JSON file or None, an error or '')."""
        if not self.part.result:
            return None, ''
        try:
            with open(self.part.result, encoding='utf-8') as file:
                return json.load(file), ''
        except (OSError, ValueError) as error:
            return None, f'wrote no readable result ({error})'


def failures(outcomes):
    """Names of the parts that failed. Parts that were left out or cut off are no failures."""
    return [outcome.part.name for outcome in outcomes if outcome.outcome in FAILURES]
