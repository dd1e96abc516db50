"""`python -m dssn.data check`: all that is wrong with a data set; for training, the cheap part."""
import os
import textwrap
from concurrent.futures import ThreadPoolExecutor
from typing import Dict, List, NamedTuple

import numpy as np
from tqdm import tqdm

from dssn import config
from dssn.data.arguments import positive_number, whole_number
from dssn.data.findings import (ERROR, KINDS, WARNING, Contents, Problem, Totals, absent_classes,
                                path_problems, problem_at, unusable_masks)
from dssn.data.identity import Identity, identify
from dssn.data.inspection import glance, inspect_all
from dssn.data.lists import Sample, check_files, check_root, parse_line, read_lines
from dssn.data.report import head, text, write_json
from dssn.errors import UserError

ROLES = ('labeled', 'unlabeled', 'val', 'select_on')
GLANCES = 32  # masks of a list that training looks at before it starts


class Listed(NamedTuple):
    """One list of a check."""
    path: str
    samples: List[Sample]  # of the lines that can be read
    identity: Identity     # None where a line cannot be read


class Report(NamedTuple):
    """All that a check found."""
    cfg: config.Config
    lists: Dict[str, Listed]
    problems: List[Problem]
    totals: Dict[str, Totals]  # of labeled and val

    def count(self, severity):
        return sum(problem.severity == severity for problem in self.problems)


def add_arguments(parser):
    """Read every file of the lists, and report whatever is wrong, by file and line.

    python -m dssn.data check --config configs/camvid.yaml --split splits/camvid/1_8
    python -m dssn.data check --config configs/mine.yaml --val splits/mine/val.txt --json all.json

Lists and folder that are not given are the config's; a list that neither names is left out. Images
count as the same where their decoded pixels are. Training makes the cheap part of this check before
its first step.
    """
    parser.epilog = (kinds_text('Errors, exit status 1: ', ERROR) + '\n\n'
                     + kinds_text('Warnings, which leave it 0: ', WARNING))
    parser.add_argument('--config', required=True, help='YAML file: nclass, classes, ignore_index, '
                                                        'data_root, lists')
    parser.add_argument('--split', metavar='FOLDER',
                        help='folder with labeled.txt and perhaps unlabeled.txt')
    for role in ('labeled', 'unlabeled', 'val'):
        parser.add_argument(f'--{role}', metavar='LIST', help=f'{role} id list')
    parser.add_argument('--data-root', metavar='FOLDER',
                        help='folder that the lists are relative to')
    parser.add_argument('--set', nargs='+', action='extend', default=[], metavar='KEY=VALUE',
                        dest='assignments', help='override config keys')
    parser.add_argument('--workers', type=whole_number, default=os.cpu_count(), metavar='N',
                        help='processes that read files (default: one a core, %(default)s here)')
    parser.add_argument('--show', type=positive_number, default=5, metavar='N',
                        help='problems of one kind that are printed (default: %(default)s)')
    parser.add_argument('--json', metavar='FILE', help='write all of the report to this file')
    parser.set_defaults(parser=parser)


def kinds_text(start, wanted):
    """A paragraph of the kinds of problems of a severity."""
    headings = [heading for severity, heading in KINDS.values() if severity == wanted]
    return textwrap.fill(f'{start}{"; ".join(headings)}.', 96)


def run(args):
    cfg = read_config(args)
    report = Report(cfg, {}, [], {})
    for role, path in config.list_paths(cfg).items():
        report.lists[role] = read_listed(role, path, report.problems, cfg.allow_outside)
    print(head(report))
    check_root(cfg.data_root)
    check(report, args.workers)
    print(text(report, args.show))
    status = 1 if report.count(ERROR) else 0
    if args.json:
        write_json(args.json, report, status)
    return status


def read_config(args):
    if args.split and (args.labeled or args.unlabeled):
        args.parser.error('--split is both lists: leave out --labeled and --unlabeled')
    if args.split:
        args.labeled = os.path.join(args.split, 'labeled.txt')
        unlabeled = os.path.join(args.split, 'unlabeled.txt')
        args.unlabeled = unlabeled if os.path.exists(unlabeled) else ''
    return config.load(args.config, {
        'labeled_id_path': args.labeled, 'unlabeled_id_path': args.unlabeled,
        'val_id_path': args.val, 'data_root': args.data_root}, args.assignments)


def read_listed(role, path, problems, allow_outside=False):
    """A list's `Listed`; lines that cannot be read are appended to the problems."""
    samples, good = [], True
    for line, place in read_lines(path):
        try:
            samples.append(parse_line(line, place, role != 'unlabeled', allow_outside))
        except UserError as error:
            good, sample = False, Sample(line, None, place)
            problems.append(problem_at(sample, 'bad_line', str(error), role, None))
    return Listed(path, samples, identify(path) if good else None)


def check(report, workers):
    """Fill in the problems and totals of a report, from its lists and all of their files."""
    cfg, problems, contents = report.cfg, report.problems, Contents()
    lists = {role: listed.samples for role, listed in report.lists.items()}
    problems += path_problems(lists)
    tasks = [(role, sample) for role, samples in lists.items() for sample in samples]
    report.totals.update({role: Totals() for role in lists if role != 'unlabeled'})
    found = inspect_all(cfg.data_root, cfg.nclass, cfg.ignore_index,
                        [(sample, role != 'unlabeled') for role, sample in tasks], workers)
    bar = tqdm(zip(tasks, found), total=len(tasks), desc='check', unit='sample', disable=None)
    for (role, sample), inspected in bar:
        problems += of_sample(role, sample, inspected)
        if inspected.digest:
            problems += contents.add(role, sample, inspected.digest)
        if inspected.counts is not None:
            report.totals[role].add(inspected.counts)
    names = config.names_of_classes(cfg)
    for role, totals in report.totals.items():
        path = report.lists[role].path
        problems += unusable_masks(role, path, totals) + absent_classes(role, path, totals, names)
    problems.sort(key=lambda problem: (ROLES.index(problem.role), problem.line or 0))


def of_sample(role, sample, inspected):
    return [problem_at(sample, problem.kind, str(problem), role, problem.file, problem.values)
            for problem in inspected.problems]


def quick_check(cfg, labeled, unlabeled, val, select_on=None):
    """What training checks before its first step: files exist, lists fit, some masks are sane.

    Args:
        labeled, unlabeled, val, select_on: samples as `read_list` returns them; unlabeled and
            select_on may be None.

    Returns:
        Lines for the log: what is suspicious, but no error.

    Raises:
        UserError: the first error, in the words of `python -m dssn.data check`.
    """
    lists = {'labeled': labeled, 'unlabeled': unlabeled or [], 'val': val,
             'select_on': select_on or []}
    try:
        for role, samples in lists.items():
            check_files(samples, cfg.data_root, masks=role != 'unlabeled')
        problems = path_problems(lists)
        for role in ('labeled', 'val', 'select_on'):
            problems += glance_at_masks(cfg, role, lists[role])
        return summed_up(problems)
    except UserError as error:
        raise UserError(f'{error}{"" if str(error).endswith("?") else "."} (`python -m dssn.data check --config ...` names all there is; '
                        '--skip-check trains without a look at the data)') from None


def glance_at_masks(cfg, role, samples):
    """The problems of some of a list's masks, drawn by the seed."""
    rng = np.random.default_rng(cfg.seed)
    drawn = np.sort(rng.permutation(len(samples))[:GLANCES])
    problems, totals = [], Totals()

    def look(index):
        return glance(cfg.data_root, cfg.nclass, cfg.ignore_index, samples[index])
    with ThreadPoolExecutor(4) as pool:  # Pillow decodes several at once
        for index, inspected in zip(drawn, pool.map(look, drawn)):
            problems += of_sample(role, samples[index], inspected)
            if inspected.counts is not None:
                totals.add(inspected.counts)
    return problems + unusable_masks(role, config.list_paths(cfg).get(role), totals)


def summed_up(problems):
    """One line for each kind of warning; the first kind of error is raised."""
    lines = []
    for kind, (severity, heading) in KINDS.items():
        found = [problem.message for problem in problems if problem.kind == kind]
        more = f' ({heading}: {len(found)} found)' if len(found) > 1 else ''
        if found and severity == ERROR:
            raise UserError(found[0] + more)
        if found:
            lines.append(f'warning: {found[0]}{more}')
    return lines
