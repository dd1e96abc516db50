"""`python -m dssn check`: report all problems of a data set."""
import os
import textwrap
from typing import Dict, List, NamedTuple, Optional

from tqdm import tqdm

from dssn import config
from dssn.data.check.findings import (
    ERROR,
    KINDS,
    WARNING,
    DuplicateFinder,
    PixelTotals,
    Problem,
    absent_class_problems,
    bands_problems,
    path_problems,
    problem_at,
    unusable_mask_problems,
)
from dssn.data.check.inspection import inspect_all
from dssn.data.check.quick import sample_problems
from dssn.data.classes import names_of_classes
from dssn.data.identity import Identity, identify
from dssn.data.lists import Sample, check_root, parse_line, read_lines
from dssn.data.palettes import PaletteRecord
from dssn.errors import UserError
from dssn.keys import Config
from dssn.tools.arguments import positive_number, whole_number
from dssn.tools.data.check_report import json_content, lists_text, report_text
from dssn.tools.output_files import write_json

ROLES = ('labeled', 'unlabeled', 'val', 'select_on')


class CheckedList(NamedTuple):
    """One of the lists that are checked."""
    path: str
    samples: List[Sample]         # of the lines that can be read
    identity: Optional[Identity]  # None if a line cannot be read


class Report(NamedTuple):
    """The result of a check."""
    cfg: Config
    lists: Dict[str, CheckedList]   # by role
    problems: List[Problem]
    totals: Dict[str, PixelTotals]  # by role, for all lists but unlabeled

    def count(self, severity):
        """The number of problems of a severity."""
        return sum(problem.severity == severity for problem in self.problems)


def add_arguments(parser):
    """Read every file of the lists, and report all problems by file and line.

        python -m dssn check --config configs/camvid.yaml --split splits/camvid/1_8
        python -m dssn check --config configs/mine.yaml --val splits/mine/val.txt --json all.json

    Lists and the data root are taken from the config unless they are given here. A list that
    neither names is not checked. Two images are the same if their decoded pixels are equal.
    Training runs the fast part of this check before its first step.
    """
    parser.epilog = (kinds_text('Errors, exit status 1: ', ERROR) + '\n\n'
                     + kinds_text('Warnings, exit status 0: ', WARNING))
    parser.add_argument('--config', required=True, help='YAML file: nclass, classes, ignore_index, '
                                                        'data_root, lists')
    parser.add_argument('--split', metavar='FOLDER',
                        help='folder with labeled.txt and optionally unlabeled.txt')
    for role in ('labeled', 'unlabeled', 'val'):
        parser.add_argument(f'--{role}', metavar='LIST', help=f'{role} id list')
    parser.add_argument('--data-root', metavar='FOLDER',
                        help='folder that the lists are relative to')
    parser.add_argument('--set', nargs='+', action='extend', default=[], metavar='KEY=VALUE',
                        dest='assignments', help='override config keys')
    parser.add_argument('--workers', type=whole_number, default=os.cpu_count(), metavar='N',
                        help='processes that read files (default: one per core, here %(default)s)')
    parser.add_argument('--show', type=positive_number, default=5, metavar='N',
                        help='number of problems printed for each kind, at most (default: '
                             '%(default)s)')
    parser.add_argument('--json', metavar='FILE', help='write the whole report to this file')
    parser.set_defaults(parser=parser)


def kinds_text(start, wanted):
    """A paragraph that lists the kinds of problems of severity `wanted`."""
    headings = [heading for severity, heading in KINDS.values() if severity == wanted]
    return textwrap.fill(f'{start}{"; ".join(headings)}.', 96)


def run(args):
    cfg = read_config(args)
    report = Report(cfg, {}, [], {})
    for role, path in cfg.list_paths.items():
        report.lists[role] = read_checked_list(role, path, report.problems, cfg.allow_outside)
    print(lists_text(report))
    check_root(cfg.data_root)
    inspect_lists(report, args.workers)
    print(report_text(report, args.show))
    status = 1 if report.count(ERROR) else 0
    write_json(args.json, json_content(report, status))
    return status


def read_config(args):
    """The config, with the lists and the data root of the command line."""
    if args.split and (args.labeled or args.unlabeled):
        args.parser.error('--split names both lists: leave out --labeled and --unlabeled')
    if args.split:
        args.labeled = os.path.join(args.split, 'labeled.txt')
        unlabeled = os.path.join(args.split, 'unlabeled.txt')
        args.unlabeled = unlabeled if os.path.exists(unlabeled) else ''
    return config.load(args.config, {
        'labeled_id_path': args.labeled, 'unlabeled_id_path': args.unlabeled,
        'val_id_path': args.val, 'data_root': args.data_root}, args.assignments)


def read_checked_list(role, path, problems, allow_outside=False):
    """Read a list as a `CheckedList`. Lines that cannot be read are appended to `problems`."""
    samples, readable = [], True
    for line, place in read_lines(path):
        try:
            samples.append(parse_line(line, place, role != 'unlabeled', allow_outside))
        except UserError as error:
            readable, sample = False, Sample(line, None, place)
            problems.append(problem_at(sample, 'bad_line', str(error), role, None))
    return CheckedList(path, samples, identify(path) if readable else None)


def inspect_lists(report, workers):
    """Inspect all files of a report's lists, and add their problems and totals to the report."""
    cfg, problems, duplicates = report.cfg, report.problems, DuplicateFinder()
    palettes = PaletteRecord(cfg.palette)
    lists = {role: checked_list.samples for role, checked_list in report.lists.items()}
    problems += path_problems(lists)
    tasks = [(role, sample) for role, samples in lists.items() for sample in samples]
    report.totals.update({role: PixelTotals() for role in lists if role != 'unlabeled'})
    results = inspect_all(cfg.data_root, cfg.nclass, cfg.ignore_index,
                          [(sample, role != 'unlabeled') for role, sample in tasks], workers)
    bands = {role: [] for role in lists}
    bar = tqdm(zip(tasks, results), total=len(tasks), desc='check', unit='sample', disable=None)
    for (role, sample), inspected in bar:
        problems += sample_problems(cfg.data_root, role, sample, inspected, palettes)
        if inspected.digest:
            problems += duplicates.add(role, sample, inspected.digest)
        if inspected.counts is not None:
            report.totals[role].add(inspected.counts)
        if inspected.bands:
            bands[role].append((sample.image, inspected.bands))
    for role, read in bands.items():
        problems += bands_problems(role, report.lists[role].path, read)
    names = names_of_classes(cfg)
    for role, totals in report.totals.items():
        path = report.lists[role].path
        problems += unusable_mask_problems(role, path, totals, cfg.ignore_index)
        problems += absent_class_problems(role, path, totals, names)
    problems.sort(key=lambda problem: (ROLES.index(problem.role), problem.line or 0))
