"""Watching a run: its pseudo-labels in numbers and in panels, and classes that go without.

Nothing here changes a number of the run. Counts stay on the device; they are read every
`log_every` steps and at the end of an epoch, and only a step with panels looks at pixels.
"""
import torch

from dssn.config import colours_of_classes, names_of_classes
from dssn.data.datasets import PARTNER, UNLABELED, weak_truth
from dssn.errors import UserError
from dssn.mixing import box_mask, paste
from dssn.panels import labeled_panel, unlabeled_panel

IGNORE = 255
MOST_PROBLEMS = 5  # masks that the log names
MOST_NAMES = 12    # classes that a line of the log names


class Watch:
    """Takes note of every step, and writes into the logbook.

    Args:
        log: the run's Logbook. unlabeled: the list's samples; None without one.
    """

    def __init__(self, cfg, world, log, unlabeled=None):
        self.cfg, self.world, self.log, self.unlabeled = cfg, world, log, unlabeled
        self.names, self.colours = names_of_classes(cfg), colours_of_classes(cfg)
        self.with_truth = unlabeled is not None and cfg.watch_truth and \
            any(sample.mask for sample in unlabeled)
        self.recent, self.of_epoch = {}, {}  # {level: counts (2, C)}, see `count`
        self.missing = []                    # names of classes without labels, as last said
        self.problems = set()                # places of bad masks

    def notes(self):
        """What the log should say of the truth that is watched, lines."""
        if self.unlabeled is None or not self.cfg.watch_truth:
            return []
        path, count = self.cfg.unlabeled_id_path, sum(bool(s.mask) for s in self.unlabeled)
        if not count:
            return [f'watch_truth: no line of {path} names a mask, so there is no truth to watch']
        return [f'watch_truth: {count} of {len(self.unlabeled)} lines of {path} name a mask; they '
                'are compared with pseudo-labels, never trained on']

    def state(self):
        """What a checkpoint holds of the watch; counts of the epoch are those of all ranks."""
        return {'recent': {name: counts.cpu() for name, counts in self.recent.items()},
                'of_epoch': {name: self.world.sum(counts).cpu()
                             for name, counts in sorted(self.of_epoch.items())},
                'missing': list(self.missing), 'problems': sorted(self.problems)}

    def restore(self, state):
        """Go on from a `state`; it counts once, so the other ranks begin at zero."""
        self.missing, self.problems = list(state['missing']), set(state['problems'])
        for name in ('recent', 'of_epoch'):
            setattr(self, name, {
                key: counts.to(self.world.device) if self.world.is_main
                else torch.zeros_like(counts, device=self.world.device)
                for key, counts in state[name].items()})

    def looks_at(self, step):
        """Whether panels are drawn of a step."""
        return self.world.is_main and self.log.is_due(step, self.cfg.panel_every)

    def step(self, epoch, step, terms, batch):
        """Take note of a step, on every rank.

        Args:
            epoch, step: from 0. terms: the method's `Terms`. batch: a `Batch` on the device.
        """
        for branch, labels in terms.labels.items():
            counts = count(labels, len(self.names))
            for known in (self.recent, self.of_epoch):
                known[level(branch)] = known.get(level(branch), 0) + counts
        if self.log.is_due(step, self.cfg.log_every):
            if self.world.is_main:
                for name, counts in self.recent.items():
                    self.log.scalars(selection_scalars(name, counts.tolist(), self.names), step)
            self.recent = {}
        if self.looks_at(step):
            self._look(epoch, step, terms, batch)

    def _look(self, epoch, step, terms, batch):
        """Compare with truth, and write the panels."""
        truth = None
        if self.with_truth and terms.labels:
            truth = self.truth(batch.u, epoch, UNLABELED)
            partner = self.truth(batch.v, epoch, PARTNER)
            self.log.scalars(truth_scalars(terms.labels, batch.u, truth, partner, self.names), step)
        most = self.cfg.panel_images
        if 'labeled' in terms.predictions:
            self.log.picture('panels/labeled', labeled_panel(
                batch.x, terms.predictions['labeled'], self.colours, most), step)
        if {'weak', 'strong1', 'strong2'} & set(terms.predictions):
            self.log.picture('panels/unlabeled', unlabeled_panel(
                batch.u, batch.v, terms, self.colours, truth, most), step)

    def truth(self, part, epoch, role):
        """Truth of the weak views of `u` or `v`, (B, H, W) int64 on its device, 255 = none."""
        found = []
        for index in part.index.tolist():
            try:
                found.append(weak_truth(self.cfg, self.unlabeled, index, epoch, role))
            except UserError as error:  # of no consequence for training
                self._complain(self.unlabeled[index].place, error)
                found.append(torch.full(part.valid.shape[1:], IGNORE, dtype=torch.long))
        return torch.stack(found).to(part.valid.device)

    def _complain(self, place, error):
        if place in self.problems or len(self.problems) == MOST_PROBLEMS:
            return
        self.problems.add(place)
        last = '; further masks that cannot be used are not named' \
            if len(self.problems) == MOST_PROBLEMS else ''
        self.log.say(f'watch_truth: left out: {error}{last}')

    def end_epoch(self, epoch):
        """Warn of classes that no label of the image level was selected for; on every rank.

        Said where the classes are other ones than after the last epoch. The image level has no
        labels while warming up.

        Args:
            epoch: how many are done.
        """
        counts = self.of_epoch.get('image')
        self.of_epoch = {}
        if counts is None:
            return
        text, self.missing = missing_text(epoch, self.world.sum(counts).tolist(), self.names,
                                          self.missing)
        if text:
            self.log.say(text)


def level(branch):
    """'image' of 'image1' and 'image2', which are labeled alike."""
    return branch.rstrip('12')


def count(labels, nclass):
    """Pixels per class of `PseudoLabels`, padding left out, without waiting for the device.

    Returns:
        (2, C) int64: those not selected, those selected.
    """
    label, selected, valid = labels
    bins = (label + nclass * selected).masked_fill(~valid, 2 * nclass).flatten(0, 1)   # (B*H, W)
    # A row of pixels counts into a row of its own: few of a GPU's threads then add to one place.
    counts = torch.zeros(len(bins), 2 * nclass + 1, dtype=torch.long, device=bins.device)
    counts.scatter_add_(1, bins, torch.ones_like(bins))
    return counts.sum(0)[:-1].view(2, nclass)


def selection_scalars(name, counts, names):
    """Shares by class, for TensorBoard: how much of the pixels is labeled as it, and trusted.

    `predicted` is the share of all valid pixels that are labeled as the class, `selected` the
    selected share of these; a class that no pixel is labeled as has no `selected`.

    Args:
        name: the level. counts: two lists, see `count`.
    """
    total = sum(counts[0]) + sum(counts[1])
    found = {}
    for class_name, rest, selected in zip(names, *counts):
        if total:
            found[f'pseudo/{name}/predicted/{class_name}'] = (rest + selected) / total
        if rest + selected:
            found[f'pseudo/{name}/selected/{class_name}'] = selected / (rest + selected)
    return found


def truth_scalars(labels, u, truth, partner, names):
    """Shares of pseudo-labels that agree with truth, for TensorBoard; pixels without are left out.

    `correct/<class>` is of the selected labels of a class, `correct_selected` of all selected
    ones, `correct_all` of all labels; what has no pixel has no value.

    Args:
        labels: {branch: PseudoLabels} of one step. u: its Unlabeled. truth, partner: (B, H, W) of
            the weak views of u and of the partners, mixed here as the labels were.
    """
    sums = {}
    for branch, (label, selected, valid) in labels.items():
        mixed = truth
        if level(branch) == 'image':
            box = u.box1 if branch == 'image1' else u.box2
            mixed = paste(truth, partner, box_mask(box, truth.shape[1:]))
        known = valid & (mixed != IGNORE)
        # (2, C) of all labels, (2, C) of the correct ones
        counts = torch.stack([count((label, selected, mask), len(names))
                              for mask in (known, known & (label == mixed))])
        sums[level(branch)] = sums.get(level(branch), 0) + counts
    found = {}
    for name, counts in sums.items():
        every, right = counts.sum((1, 2)).tolist()
        pairs = {'correct_all': (right, every)}
        every, right = counts[:, 1].tolist()
        pairs['correct_selected'] = sum(right), sum(every)
        pairs.update({f'correct/{class_name}': pair
                      for class_name, *pair in zip(names, right, every)})
        found.update({f'pseudo/{name}/{tag}': part / whole
                      for tag, (part, whole) in pairs.items() if whole})
    return found


def missing_text(epoch, counts, names, before):
    """The line on classes that no label was selected for, and the names of these.

    Args:
        epoch: how many are done. counts: two lists, see `count`, of the epoch and all ranks.
        before: the names after the epoch before. The line is None where they are the same.
    """
    missing, parts = [], []
    kinds = [('never predicted', [n for n, *c in zip(names, *counts) if not sum(c)]),
             ('predicted, but never selected',
              [n for n, rest, selected in zip(names, *counts) if rest and not selected])]
    for kind, found in kinds:
        missing += found
        if found:
            more = f' and {len(found) - MOST_NAMES} more' if len(found) > MOST_NAMES else ''
            parts.append(f'{kind}: {", ".join(found[:MOST_NAMES])}{more}')
    if set(missing) == set(before):
        return None, missing
    if not missing:
        return f'epoch {epoch}: pseudo-labels of every class were selected again', missing
    advice = '' if before else ('; look at their IoU, at how many labeled images show them, and at '
                                'the thresholds of the selection')
    return (f'warning: epoch {epoch}: {len(missing)} of {len(names)} classes had no selected '
            f'pseudo-label of a strong view; {"; ".join(parts)}{advice}'), missing
