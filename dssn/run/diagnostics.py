"""Diagnostics of pseudo-labels: statistics, panels, and a warning for classes without any.

Nothing here affects the result. Counts stay on the device and are read every `log_every` steps and
at the end of an epoch. Images are copied from the device only for panels.
"""
import torch

from dssn.data.classes import colours_of_classes, names_of_classes
from dssn.data.datasets import PARTNER, UNLABELED, weak_ground_truth
from dssn.data.palettes import PaletteRecord
from dssn.errors import UserError
from dssn.labels import IGNORE
from dssn.mixing import box_mask, paste
from dssn.run.panels import labeled_panel, unlabeled_panel

MOST_PROBLEMS = 5  # unusable masks that the log names
MOST_NAMES = 12    # classes that a line of the log names


class Watch:
    """Accumulates statistics of the steps, and writes them to the logbook.

    Args:
        log: the run's Logbook. unlabeled: samples of the unlabeled list; None without this list.
    """

    def __init__(self, cfg, world, log, unlabeled=None):
        self.cfg, self.world, self.log, self.unlabeled = cfg, world, log, unlabeled
        self.names, self.colours = names_of_classes(cfg), colours_of_classes(cfg)
        self.with_ground_truth = unlabeled is not None and cfg.watch_truth and \
            any(sample.mask for sample in unlabeled)
        self.recent, self.of_epoch = {}, {}  # {level: counts (2, C)}, see `count`
        self.missing = []                    # classes without selected labels, as last logged
        self.problems = set()                # places (list and line) of unusable masks
        self.palettes = PaletteRecord(cfg.palette)

    def notes(self):
        """Lines for the log on `watch_truth`."""
        if self.unlabeled is None or not self.cfg.watch_truth:
            return []
        path, count = self.cfg.unlabeled_id_path, sum(bool(s.mask) for s in self.unlabeled)
        if not count:
            return [f'watch_truth: no line of {path} names a mask, so there is no ground truth to '
                    'compare with']
        return [f'watch_truth: {count} of {len(self.unlabeled)} lines of {path} name a mask; they '
                'are compared with pseudo-labels, never trained on']

    def state(self):
        """The state for a checkpoint. Counts of the epoch are summed over all ranks."""
        return {'recent': {name: counts.cpu() for name, counts in self.recent.items()},
                'of_epoch': {name: self.world.sum(counts).cpu()
                             for name, counts in sorted(self.of_epoch.items())},
                'missing': list(self.missing), 'problems': sorted(self.problems)}

    def restore(self, state):
        """Restore a `state`. Rank 0 takes all counts, so the other ranks start at zero."""
        self.missing, self.problems = list(state['missing']), set(state['problems'])
        for name in ('recent', 'of_epoch'):
            setattr(self, name, {
                key: counts.to(self.world.device) if self.world.is_main
                else torch.zeros_like(counts, device=self.world.device)
                for key, counts in state[name].items()})

    def has_panels(self, step):
        """Whether panels of a step are written (on this rank)."""
        return self.world.is_main and self.log.is_due(step, self.cfg.panel_every)

    def step(self, epoch, step, terms, batch):
        """Accumulate the statistics of one step. Called on every rank.

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
        if self.has_panels(step):
            self._write_panels(epoch, step, terms, batch)

    def _write_panels(self, epoch, step, terms, batch):
        """Compare pseudo-labels with ground truth, and write the panels."""
        own = None
        if self.with_ground_truth and terms.labels:
            own = self.ground_truth(batch.unlabeled, epoch, UNLABELED)
            # With `cutmix_partner: batch` partners are weak views of the batch itself.
            partner = self.ground_truth(batch.partner, epoch, UNLABELED
                                        if self.cfg.cutmix_partner == 'batch' else PARTNER)
            self.log.scalars(ground_truth_scalars(terms.labels, batch.unlabeled, own, partner,
                                                  self.names), step)
        most = self.cfg.panel_images
        if 'labeled' in terms.predictions:
            self.log.picture('panels/labeled', labeled_panel(
                batch.labeled, terms.predictions['labeled'], self.colours, most), step)
        if {'weak', 'strong1', 'strong2'} & set(terms.predictions):
            self.log.picture('panels/unlabeled', unlabeled_panel(
                batch.unlabeled, batch.partner, terms, self.colours, own, most), step)

    def ground_truth(self, part, epoch, role):
        """Ground truth of the weak views of images or partners, (B, H, W) int64, 255 = none.

        Args:
            part: `Unlabeled`. epoch: from 0. role: UNLABELED or PARTNER.
        """
        found = []
        for index in part.index.tolist():
            try:
                found.append(weak_ground_truth(self.cfg, self.unlabeled, index, epoch, role,
                                               self.palettes))
            except UserError as error:  # training does not need the mask
                self._log_problem(self.unlabeled[index].place, error)
                found.append(torch.full(part.valid.shape[1:], IGNORE, dtype=torch.uint8))
        return torch.stack(found).to(part.valid.device).long()

    def _log_problem(self, place, error):
        if place in self.problems or len(self.problems) == MOST_PROBLEMS:
            return
        self.problems.add(place)
        last = '; further unusable masks are not named' \
            if len(self.problems) == MOST_PROBLEMS else ''
        self.log.write(f'watch_truth: left out: {error}{last}')

    def end_epoch(self, epoch):
        """Warn of classes without a selected pseudo-label at the image level. Called on every rank.

        The warning comes only if the classes differ from those after the last epoch. While warming
        up the image level has no pseudo-labels, and there is no warning.

        Args:
            epoch: number of epochs done.
        """
        counts = self.of_epoch.get('image')
        self.of_epoch = {}
        if counts is None:
            return
        text, self.missing = missing_text(epoch, self.world.sum(counts).tolist(), self.names,
                                          self.missing)
        if text:
            self.log.write(text)


def level(branch):
    """The level of a branch: 'image' for 'image1' and 'image2', 'feature' for 'feature'."""
    return branch.rstrip('12')


def count(labels, nclass):
    """Count the pixels of each class in `PseudoLabels`, without padding.

    It does not wait for the device.

    Returns:
        (2, C) int64: pixels not selected, pixels selected.
    """
    label, selected, valid = labels
    bins = (label + nclass * selected).masked_fill(~valid, 2 * nclass).flatten(0, 1)   # (B*H, W)
    # Each row of pixels has its own row of counts, so that few GPU threads add to the same count.
    counts = torch.zeros(len(bins), 2 * nclass + 1, dtype=torch.long, device=bins.device)
    counts.scatter_add_(1, bins, torch.ones_like(bins))
    return counts.sum(0)[:-1].view(2, nclass)


def selection_scalars(name, counts, names):
    """Fractions of predicted and selected pixels of each class, for TensorBoard.

    `predicted` is the fraction of all valid pixels that are labeled as the class. `selected` is the
    fraction of these that is selected; a class without predicted pixels has no `selected`.

    Args:
        name: the level. counts: the result of `count` as two lists. names: of the classes.

    Returns:
        {tag: fraction}.
    """
    total = sum(counts[0]) + sum(counts[1])
    found = {}
    for class_name, rest, selected in zip(names, *counts):
        if total:
            found[f'pseudo/{name}/predicted/{class_name}'] = (rest + selected) / total
        if rest + selected:
            found[f'pseudo/{name}/selected/{class_name}'] = selected / (rest + selected)
    return found


def ground_truth_scalars(labels, unlabeled, own, partner, names):
    """Fractions of pseudo-labels that are correct, for TensorBoard.

    `correct/<class>` is the fraction of the selected labels of a class, `correct_selected` that of
    all selected labels, `correct_all` that of all labels. Pixels without ground truth are not
    counted. A fraction over no pixels is left out.

    Args:
        labels: {branch: PseudoLabels} of one step. unlabeled: `Unlabeled` of the step. own,
            partner: ground truth of the weak views of the images and of their partners, (B, H, W)
            int64. It is mixed here by CutMix, as the labels were. names: of the classes.

    Returns:
        {tag: fraction}.
    """
    sums = {}
    for branch, (label, selected, valid) in labels.items():
        mixed = own
        if level(branch) == 'image':
            box = unlabeled.box1 if branch == 'image1' else unlabeled.box2
            mixed = paste(own, partner, box_mask(box, own.shape[1:]))
        known = valid & (mixed != IGNORE)
        # (2, 2, C): counts of all labels, counts of the correct ones
        counts = torch.stack([count((label, selected, mask), len(names))
                              for mask in (known, known & (label == mixed))])
        sums[level(branch)] = sums.get(level(branch), 0) + counts
    found = {}
    for name, counts in sums.items():
        every, correct = counts.sum((1, 2)).tolist()
        pairs = {'correct_all': (correct, every)}
        every, correct = counts[:, 1].tolist()
        pairs['correct_selected'] = sum(correct), sum(every)
        pairs.update({f'correct/{class_name}': pair
                      for class_name, *pair in zip(names, correct, every)})
        found.update({f'pseudo/{name}/{tag}': part / whole
                      for tag, (part, whole) in pairs.items() if whole})
    return found


def missing_text(epoch, counts, names, before):
    """(log line on classes without a selected pseudo-label, names of these classes).

    The line is None if the classes are the same as after the last epoch.

    Args:
        epoch: number of epochs done. counts: the result of `count` as two lists, over the epoch and
            all ranks. names: of all classes. before: names returned after the last epoch.
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
    advice = '' if before else ('; check their IoU, the number of labeled images that show them, '
                                'and the thresholds of the selection')
    return (f'warning: epoch {epoch}: {len(missing)} of {len(names)} classes had no selected '
            f'pseudo-label of a strong view; {"; ".join(parts)}{advice}'), missing
