"""Trains runs of an experiment by scripts/train.sh, one at a time or several at once."""
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

from dssn.distributed import cores_of_a_process
from dssn.tools.experiments.grid import start_command
from dssn.tools.experiments.progress import progress_in_folder, progress_of
from dssn.tools.experiments.run_times import RunTimes

POLL = 0.1        # seconds between two checks of the runs
GRACE = 15, 0.1   # time to save and stop before the deadline: seconds, but at most this fraction of
                  # the whole time
SHOWN_LINES = 15  # lines of the output of a failed run that are printed


class RunOutcome(NamedTuple):
    """How a run ended.

    state: 'done', 'failed', 'stopped' (saved at the deadline) or 'left out' (not started).
    text: the reason, if it is not done. seconds: from its start to its end; None if not started.
    """
    planned: Any
    state: str
    text: str = ''
    seconds: float = None


class ActiveRun(NamedTuple):
    """A run that is being trained."""
    planned: Any
    child: Any         # the process of scripts/train.sh
    output: Any        # file with its output; None: it prints to the terminal
    since: float
    epoch: int         # epochs that it had finished when it was started


class Deadline:
    """The time at which all runs have ended.

    Args:
        minutes: from now on; None: there is no deadline.
    """

    def __init__(self, minutes=None):
        self.minutes = minutes
        self.end = None if minutes is None else time.time() + 60 * minutes
        self.grace = 0 if minutes is None else min(GRACE[0], GRACE[1] * 60 * minutes)

    def left(self):
        """Seconds until the runs are asked to stop; None without a deadline."""
        return None if self.end is None else self.end - self.grace - time.time()

    def is_over(self):
        """Whether the time to save and stop is over too."""
        return self.end is not None and time.time() > self.end


class Pool:
    """Trains runs; `train` returns their outcomes.

    Args:
        runs: `PlannedRun`s, in the order in which they are started.
        keep_going: start further runs after one has failed. Active runs are never ended for that.
        at_once: maximum number of active runs.
        deadline: a `Deadline`. A run that does not fit is left out.
        run_times: a `RunTimes`, the known costs of runs.
        on_check: called with the list of `RunOutcome`s so far after each check of the runs.
    """

    def __init__(self, runs, keep_going=False, at_once=1, deadline=None, run_times=None,
                 on_check=None):
        self.runs, self.keep_going, self.at_once = runs, keep_going, at_once
        self.deadline, self.run_times = deadline or Deadline(), run_times or RunTimes()
        self.on_check = on_check or (lambda outcomes: None)
        self.waiting, self.active, self.outcomes = list(runs), [], []
        self.signals, self.ports, self.stop_requests = [], set(), 0

    def train(self):
        """([RunOutcome] in the order of the ends, number of the first signal or None).

        A signal is passed on to the active runs, which then end. No further run is started.
        """
        real = {number: signal.signal(number, self.pass_on)
                for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            while True:
                self.collect_ended()
                self.start_waiting()
                self.stop_in_time()
                self.on_check(self.outcomes)
                if not self.active and not self.may_start():
                    break
                time.sleep(POLL if self.active else 0)
        finally:
            for number, handler in real.items():
                signal.signal(number, handler)
        return self.outcomes, self.signals[0] if self.signals else None

    def pass_on(self, number, _):
        self.signals.append(number)
        if number != signal.SIGINT:  # the terminal sends Ctrl-C to the runs too
            for run in self.active:
                run.child.send_signal(number)

    def may_start(self):
        failed = any(outcome.state == 'failed' for outcome in self.outcomes)
        return bool(self.waiting) and not self.signals and (self.keep_going or not failed)

    def start_waiting(self):
        """Start runs in order, as many as allowed; record those that are done or left out."""
        for planned in list(self.waiting):
            if len(self.active) >= self.at_once or not self.may_start():
                return
            if not self.must_train(planned):
                self.record(planned, 'done', f'{progress_of(planned).state} already')
                continue
            initial = self.initial_run(planned)
            if initial in self.waiting or initial in [run.planned for run in self.active]:
                continue
            reason = self.reason_to_leave_out(planned, initial)
            if reason:
                self.record(planned, 'left out', reason)
            else:
                self.start(planned)

    def initial_run(self, planned):
        """The earlier run whose weights this one starts from, or None."""
        earlier = self.runs[:self.runs.index(planned)]
        return next((run for run in earlier
                     if planned.cfg.init_from.startswith(run.folder + '/')), None)

    def must_train(self, planned):
        """Whether a run is not finished, or is kept but another run needs its weights."""
        state = progress_of(planned).state
        if state == 'kept':
            return any(self.initial_run(other) == planned and self.must_train(other)
                       for other in self.waiting)
        return state != 'done'

    def reason_to_leave_out(self, planned, initial):
        """Why a run is not started; '' if it is."""
        if initial and progress_in_folder(initial).state != 'done':
            return f'it starts from {initial.name}, which is not done'
        left, seconds = self.deadline.left(), self.run_times.seconds_left(planned)
        if left is not None and left <= 0:
            return 'the time is over'
        if left is not None and seconds is not None and seconds > left:
            return f'it takes about {seconds:.0f} s, and {left:.0f} s are left'
        return ''

    def record(self, planned, state, text='', seconds=None):
        """Add and print the outcome of a run that is no longer waiting or active."""
        if planned in self.waiting:
            self.waiting.remove(planned)
        self.outcomes.append(RunOutcome(planned, state, text, seconds))
        if state == 'done' and text:
            print(f'{text}: {planned.name}', flush=True)
        elif state == 'done' and self.at_once > 1:
            print(f'done: {planned.name}, {seconds:.0f} s', flush=True)
        elif state != 'done' and (state != 'failed' or self.at_once > 1):
            print(f'{state}: {planned.name}: {text}', flush=True)

    def start(self, planned):
        self.waiting.remove(planned)
        arguments, variables = start_command(planned, self.free_port())
        number = self.runs.index(planned) + 1
        print(f'run {number} of {len(self.runs)}: {planned.name}', flush=True)
        output = tempfile.TemporaryFile() if self.at_once > 1 else None
        environment = {**os.environ, **variables}
        if self.at_once > 1 and not environment.get('OMP_NUM_THREADS'):
            cores = cores_of_a_process(self.at_once * planned.processes)
            environment['OMP_NUM_THREADS'] = str(cores)
        epoch = progress_in_folder(planned).epoch
        child = subprocess.Popen(arguments, env=environment, stdout=output,
                                 stderr=None if output is None else subprocess.STDOUT)
        self.active.append(ActiveRun(planned, child, output, time.time(), epoch))
        if self.signals and self.signals[0] != signal.SIGINT:  # it came while the run was started
            child.send_signal(self.signals[0])

    def free_port(self):
        """A port that is not in use now, and that no other run of this pool was given."""
        while True:
            with socket.socket() as probe:
                probe.bind(('', 0))
                port = probe.getsockname()[1]
            if port not in self.ports:
                self.ports.add(port)
                return port

    def collect_ended(self):
        """Record the active runs that have ended."""
        for run in list(self.active):
            code = run.child.poll()
            if code is None:
                continue
            self.active.remove(run)
            seconds, planned = time.time() - run.since, run.planned
            code = code if code >= 0 else 128 - code
            found = progress_in_folder(planned)
            if code == 0 and found.state == 'done':
                if run.epoch == 0:
                    self.run_times.learn(planned, seconds)
                self.record(planned, 'done', '', seconds)
            elif self.stop_requests and code == 128 + signal.SIGTERM:
                self.record(planned, 'stopped', f'the time is over, {found.epoch} of '
                            f'{planned.cfg.epochs} epochs are evaluated', seconds)
            else:
                self.record(planned, 'failed', 'exit status 0, but the run is not finished'
                            if code == 0 else f'exit status {code}', seconds)
                print_last_lines(run)
            if run.output:
                run.output.close()

    def stop_in_time(self):
        """Ask the runs to save and stop shortly before the deadline, and again at the deadline."""
        left = self.deadline.left()
        if self.signals or left is None or not self.active:
            return
        if self.stop_requests == 0 and left <= 0 \
                or self.stop_requests == 1 and self.deadline.is_over():
            self.stop_requests += 1
            for run in self.active:
                run.child.send_signal(signal.SIGTERM)


def print_last_lines(run):
    """Print the last lines of a run's output, unless it has printed to the terminal itself."""
    if run.output is None:
        return
    run.output.seek(0)
    lines = run.output.read().decode('utf-8', 'replace').splitlines()[-SHOWN_LINES:]
    for line in lines:
        print(f'  {run.planned.variant}: {line}', file=sys.stderr, flush=True)
