"""Estimates how long a run will take, from the times of finished runs."""
from typing import NamedTuple

from dssn.run import metrics
from dssn.tools.experiments.progress import progress_in_folder


class Cost(NamedTuple):
    """Seconds that runs of a method take for the start, an optimizer step and an evaluation."""
    start: float
    step: float
    evaluation: float


class RunTimes:
    """The `Cost` of each method whose cost is known.

    Args:
        costs: {method: Cost} that is known from the beginning.
    """

    def __init__(self, costs=None):
        self.costs = dict(costs or {})

    def seconds_left(self, planned):
        """Seconds (float) that the rest of a planned run will take, or None if unknown."""
        cost = self.costs.get(planned.cfg.method)
        if cost is None:
            return None
        cfg = planned.cfg
        left = cfg.epochs - progress_in_folder(planned).epoch
        evaluations = -(-left // cfg.eval_every)
        return cost.start + cost.step * planned.steps * left / cfg.epochs \
            + cost.evaluation * evaluations

    def learn(self, planned, seconds):
        """Take the cost of a method from a run that was trained from its first step to its end.

        Args:
            seconds: from its start to its end. The run's own record starts at the first step.
        """
        last = metrics.read(f'{planned.folder}/metrics.jsonl')[-1]
        if last.get('seconds'):
            training = min(last['seconds'], seconds)
            # All runs of an experiment are evaluated equally often, so the time of evaluations is
            # counted as time of steps.
            self.costs[planned.cfg.method] = Cost(seconds - training, training / planned.steps, 0.0)
