"""Comparing runs: which are averaged, the scores, the files and the errors."""
import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from commands import report as main

from dssn import config
from dssn.distributed import World
from dssn.engine import start
from dssn.tools.curves import plot_curves
from dssn.tools.run_folders import curve, find_runs, make_rows

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LISTS = ('labeled', 'unlabeled', 'val')


def known(name, text='own list, 9 lines, sha256 '):
    sha256 = (name + '0' * 64)[:64]
    return {'text': text + sha256[:12], 'lines': 9, 'sha256': sha256}


@pytest.fixture
def make(tmp_path):
    """Factory of a run's folder below exp/, from its scores; returns its path."""
    def write(name, student, teacher=None, epochs=None, lists=None, line=None, kinds=True, **keys):
        folder = tmp_path / 'exp' / name
        folder.mkdir(parents=True)
        content = dict(dataset='streets', nclass=3, data_root='/data', save_path=str(folder),
                       labeled_id_path='l.txt', unlabeled_id_path='u.txt', val_id_path='v.txt',
                       method='DSSN' if teacher else 'supervised', epochs=epochs or len(student))
        content.update(keys)
        (folder / 'config.yaml').write_text(config.dump(config.from_dict(content, name)))
        lists = {role: known(role) for role in LISTS} if lists is None else lists
        with open(str(folder / 'metrics.jsonl'), 'w') as file:
            for number, score in enumerate(student):
                entry = dict(kind='evaluation', epoch=number + 1, iteration=50 * (number + 1),
                             student=score, teacher=teacher and teacher[number], lists=lists,
                             protocol=content.get('protocol', 'original'), absent='skip',
                             processes=1, seconds=60.0)
                if not kinds:
                    del entry['kind'], entry['lists'], entry['processes']
                entry.update(line or {})
                file.write(json.dumps(entry) + '\n')
        return str(folder)
    return write


def report(capsys, *arguments):
    """The command: (table rows as {heading: cell}, notes); it must succeed."""
    assert main(list(arguments)) == 0
    out = capsys.readouterr().out.splitlines()
    table = [[cell.strip() for cell in line.strip('|').split(' | ')] for line in out
             if line.startswith('|')]
    assert all(set(cell) == {'-'} for cell in table[1]) if table else True
    rows = [dict(zip(table[0], row)) for row in table[2:]]
    assert all(len(row) == len(table[0]) for row in table)
    return rows, [line[2:] for line in out if line.startswith('- ')]


def refused(capsys, *arguments):
    assert main(list(arguments)) == 1
    message = capsys.readouterr().err
    assert message.startswith('python -m dssn report: error: ') and message.count('\n') == 1
    return message


def stated(values):
    """Mean and sample standard deviation, by NumPy."""
    return f'{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}'


# ---- averaging

def test_seeds_are_averaged(make, tmp_path, capsys):
    students = [[40.0, 61.5, 50.25], [44.0, 52.0, 57.125], [70.5, 41.0, 41.5]]
    teachers = [[41.0, 47.0, 48.5], [58.0, 52.0, 50.0], [30.0, 60.75, 51.0]]
    for seed, (student, teacher) in enumerate(zip(students, teachers)):
        make(f'seed{seed}', student, teacher, seed=seed)
    rows, notes = report(capsys, str(tmp_path / 'exp'))
    assert rows == [{
        '#': '1', 'data set': 'streets', 'labeled list': known('labeled')['text'], 'method': 'DSSN',
        'differs in': '', 'runs': '3 (seeds 0, 1, 2)',
        'student best': stated([61.5, 57.125, 70.5]), 'student last': stated([50.25, 57.125, 41.5]),
        'teacher best': stated([48.5, 58.0, 60.75]), 'teacher last': stated([48.5, 50.0, 51.0])}]
    note, = notes
    assert 'sample standard deviation' in note and 'left out of the mean' in note
    assert 'selected on val itself' in note


def test_a_single_run_has_no_deviation(make, capsys):
    (row,), (note,) = report(capsys, make('one', [40.0, 30.0]))
    assert row['runs'] == '1 (seed 0)'
    assert (row['student best'], row['student last']) == ('40.00', '30.00')
    assert row['teacher best'] == row['teacher last'] == '-' and 'deviation' not in note


def test_the_score_of_a_single_class_is_marked(make, capsys):
    one = {'student_iou': {'sky': 100.0, 'road': None, 'car': None}}
    _, notes = report(capsys, make('one', [100.0], line=one))
    note, = [note for note in notes if 'warning' in note]
    assert note.startswith('row 1: warning: student: mIoU is the score of a single class')


def test_the_best_is_the_one_that_was_selected(make, capsys):
    # On val epoch 2 is higher, but it was not chosen.
    folder = make('one', [40.0, 60.0, 30.0], select_on='s.txt')
    path = os.path.join(folder, 'metrics.jsonl')
    with open(path) as file:
        lines = [json.loads(line) for line in file]
    with open(path, 'w') as file:
        for line, score in zip(lines, [9.0, 5.0, 8.0]):
            line['lists']['select_on'] = known('select')
            file.write(json.dumps(dict(line, select_on={'student': score})) + '\n')
    (row,), (note,) = report(capsys, folder)
    assert row['student best'] == '40.00' and note.endswith('selected on another list')
    other = make('other', [40.0, 60.0, 30.0])
    rows, notes = report(capsys, folder, other)
    assert [row['differs in'] for row in rows] == [
        'select_on=' + known('select')['text'], 'select_on=val']
    assert any(note.startswith('not averaged: rows 1, 2') and 'select_on' in note for note in notes)
    assert 'selected on val itself' in notes[0]
    assert notes[0].endswith('except where select_on is another list')


def test_keys_without_effect_on_the_result_do_not_separate_runs(make, capsys):
    folders = [make('a', [40.0], data_root='/x', workers=0, log_every=7, device='cpu',
                    panel_every=3, panel_images=1, watch_truth=True),
               make('b', [50.0], data_root='/y', workers=3, seed=1, skip_check=True,
                    colours=[[0, 0, 0], [1, 1, 1], [2, 2, 2]], labeled_id_path='elsewhere/l.txt')]
    (row,), _ = report(capsys, *folders)
    assert row['runs'] == '2 (seeds 0, 1)' and row['student last'] == stated([40.0, 50.0])


def test_different_settings_separate_runs_and_are_named(make, capsys):
    folders = [make('a', [40.0], lr=0.1), make('b', [50.0], lr=0.2),
               make('c', [60.0], lr=0.2, seed=1),
               make('d', [60.0], [61.0], lr=0.1, selection='none'),
               make('e', [60.0], [61.0], lr=0.1, crop_size=65)]
    rows, _ = report(capsys, *folders)
    assert [row['differs in'] for row in rows] == [
        'crop_size=321, lr=0.1', 'crop_size=321, lr=0.2',
        'crop_size=321, lr=0.1, selection=none', 'crop_size=65, lr=0.1, selection=class_max']
    assert [row['runs'] for row in rows] == ['1 (seed 0)', '2 (seeds 0, 1)'] + ['1 (seed 0)'] * 2


def test_runs_that_start_from_the_run_of_their_own_seed_are_averaged(make):
    def rows(*starts):
        folders = [make(f'{start}-of-{seed}', [40.0], seed=seed,
                        init_from=f'exp/first-{start}/latest.pth') for seed, start in starts]
        return [[run.seed for run in row.runs] for row in make_rows(find_runs(folders)[0])]
    assert rows((1, 'seed1'), (10, 'seed10')) == [[1, 10]]
    # Not averaged: all start from the run of one seed, or from runs of other kinds.
    assert rows((2, 'seed1x'), (3, 'seed3x'), (4, 'b')) == [[2], [3], [4]]
    assert rows((1, 'seed12'), (3, 'seed32')) == [[1], [3]]


def test_settings_are_compared_within_a_data_set(make, capsys):
    rows, notes = report(capsys, make('a', [40.0]), make('b', [50.0], dataset='woods', nclass=4))
    assert [(row['data set'], row['differs in']) for row in rows] == [
        ('streets', ''), ('woods', '')]
    assert len(notes) == 1


def lists_with(**changed):
    return dict({role: known(role) for role in LISTS}, **changed)


@pytest.mark.parametrize('role', LISTS)
def test_runs_with_different_lists_are_not_averaged(make, capsys, role):
    folders = [make('a', [40.0], [41.0]),
               make('b', [50.0], [51.0], seed=1, lists=lists_with(**{role: known('f00')}))]
    rows, notes = report(capsys, *folders)
    assert [row['student last'] for row in rows] == ['40.00', '50.00']
    assert [row['labeled list'] for row in rows] == [
        known('labeled')['text'], known('f00' if role == 'labeled' else 'labeled')['text']]
    shown = [] if role == 'labeled' else [known(role)['text'], known('f00')['text']]
    assert [row['differs in'] for row in rows] == (
        [f'{role}={text}' for text in shown] or ['', ''])
    not_averaged, = [note for note in notes if note.startswith('not averaged')]
    assert not_averaged.startswith('not averaged: rows 1, 2 have') and not_averaged.endswith(
        'different ' + role)
    assert any('not comparable' in note for note in notes) == (role == 'val')


@pytest.mark.parametrize('change, key', [
    (dict(line={'absent': 'zero'}), 'absent'), (dict(protocol='sliding_window'), 'protocol'),
    (dict(line={'processes': 4}), 'processes')], ids=lambda value: str(value))
def test_runs_with_different_protocols_are_not_averaged(make, capsys, change, key):
    rows, notes = report(capsys, make('a', [40.0]), make('b', [50.0], seed=1, **change))
    assert len(rows) == 2 and all(row['differs in'].startswith(key + '=') for row in rows)
    assert any(note.startswith('not averaged: rows 1, 2') and note.endswith(key) for note in notes)
    assert any('not comparable: row 1 / row 2 of streets' in note for note in notes) == (
        key != 'processes')


def test_windows_of_different_sizes_are_different_protocols(make, capsys):
    rows, notes = report(capsys, *[
        make(str(size), [40.0], protocol='sliding_window', crop_size=size) for size in (65, 97)])
    assert [row['differs in'] for row in rows] == [
        f'protocol=sliding_window {size}, crop_size={size}' for size in (65, 97)]
    assert any('not comparable' in note and '(protocol)' in note for note in notes)


def test_unlabeled_lists_are_compared_for_the_same_labeled_list_only(make, capsys):
    rows, _ = report(capsys, *[
        make(name, [40.0], [41.0],
             lists=lists_with(labeled=known(name), unlabeled=known('e' + name)))
        for name in ('aaa', 'bbb')])
    assert [row['differs in'] for row in rows] == ['', '']


def test_the_unlabeled_list_does_not_matter_for_a_supervised_run(make, capsys):
    lists = {role: known(role) for role in ('labeled', 'val')}
    (row,), _ = report(capsys, make('a', [40.0], lists=lists),
                       make('b', [50.0], lists=lists, seed=1, unlabeled_id_path='other.txt'))
    assert row['runs'] == '2 (seeds 0, 1)'


def test_generated_lists_of_the_same_seed_are_distinguished(make, capsys):
    text = 'generated, seed 0: not comparable with published numbers'
    folders = [make(name, [40.0], lists=lists_with(labeled=dict(known(name), text=text)))
               for name in ('aaa', 'bbb')]
    rows, _ = report(capsys, *folders)
    assert [row['labeled list'] for row in rows] == [
        f'{text} (9 lines, sha256 {name}000000000)' for name in ('aaa', 'bbb')]


def test_lists_that_changed_on_resuming_are_refused(make, capsys):
    folder = make('a', [40.0, 50.0])
    path = os.path.join(folder, 'metrics.jsonl')
    with open(path) as file:
        text = file.read().split('\n')
    text[1] = text[1].replace(known('val')['sha256'], known('f00')['sha256'])
    with open(path, 'w') as file:
        file.write('\n'.join(text))
    message = refused(capsys, folder)
    assert path in message and 'val list' in message


# ---- runs in other states

def test_an_unfinished_run_is_not_averaged(make, capsys):
    folders = [make('a', [40.0, 50.0]), make('b', [42.0], epochs=2, seed=1),
               make('c', [44.0], epochs=2, seed=2), make('d', [46.0, 56.0], seed=3)]
    rows, notes = report(capsys, *folders)
    assert [row['runs'] for row in rows] == [
        '2 (seeds 0, 3)', '1 (seed 1; unfinished, 1 of 2 epochs)',
        '1 (seed 2; unfinished, 1 of 2 epochs)']
    assert rows[0]['student last'] == stated([50.0, 56.0])
    note, = [note for note in notes if note.startswith('unfinished')]
    assert folders[1] + ' (1 of 2 epochs)' in note and folders[2] in note
    assert folders[0] not in note


def test_runs_before_their_first_evaluation_are_named(make, tmp_path, capsys):
    empty = make('a', [], epochs=2)
    rows, notes = report(capsys, empty)
    assert rows == [] and notes == ['no evaluation yet: ' + empty]
    assert 'nothing to write' in refused(capsys, empty, '--csv', str(tmp_path / 'x.csv'))
    rows, notes = report(capsys, empty, make('b', [40.0]))
    assert len(rows) == 1 and notes[-1] == 'no evaluation yet: ' + empty


def test_old_runs_are_read_too(make, capsys):
    # Without kinds and identities: lists are compared by path.
    folders = [make('a', [40.0], kinds=False), make('b', [50.0], kinds=False, seed=1),
               make('c', [70.0], kinds=False, seed=2, labeled_id_path='other.txt'),
               make('d', [60.0], seed=2)]
    rows, notes = report(capsys, *folders)
    assert [row['student last'] for row in rows] == [stated([40.0, 50.0]), '70.00', '60.00']
    assert [row['labeled list'] for row in rows] == [
        'l.txt (ids not recorded)', 'other.txt (ids not recorded)', known('labeled')['text']]
    assert any('rows 1, 2: the ids of lists were not recorded' in note for note in notes)


def test_a_key_that_is_missing_in_an_old_run_has_its_default(make, capsys):
    folders = [make('a', [40.0]), make('b', [50.0], seed=1)]
    path = os.path.join(folders[0], 'config.yaml')
    with open(path) as file:
        lines = [line for line in file if not line.startswith(('ignore_index', 'select_on'))]
    with open(path, 'w') as file:
        file.writelines(lines)
    (row,), _ = report(capsys, *folders)
    assert row['runs'] == '2 (seeds 0, 1)'


def test_a_repeated_seed_is_reported(make, capsys):
    folders = [make('a', [40.0]), make('b', [50.0])]
    (row,), notes = report(capsys, *folders)
    assert row['runs'] == '2 (seeds 0, 0)' and any('not independent' in note for note in notes)


def test_lost_evaluations_are_reported(make, capsys):
    folders = [make('a', [40.0, 50.0]), make('b', [42.0, 52.0], seed=1)]
    path = os.path.join(folders[1], 'metrics.jsonl')
    with open(path) as file:
        last = file.readlines()[-1]
    with open(path, 'w') as file:
        file.write(last)
    _, notes = report(capsys, *folders)
    assert any(note.startswith('row 1: ') and 'lost' in note for note in notes)
    row, = make_rows(find_runs(folders)[0])
    assert curve(row, 'student')[:2] == ([100], [51.0])


def test_a_folder_that_is_named_twice_counts_once(make, tmp_path, capsys):
    folder = make('a/b', [40.0])
    (row,), _ = report(capsys, folder, str(tmp_path), os.path.relpath(folder), folder + os.sep)
    assert row['runs'] == '1 (seed 0)'


def test_a_run_that_was_moved_aside_counts_only_if_it_is_named(make, tmp_path, capsys):
    make('a', [40.0])
    aside = make('a/before_20260131_235959', [99.0])
    (row,), _ = report(capsys, str(tmp_path))
    assert row['runs'] == '1 (seed 0)' and not any('99' in cell for cell in row.values())
    (row,), _ = report(capsys, aside)
    assert any('99' in cell for cell in row.values())


# ---- files

def test_the_csv_has_all_columns(make, tmp_path, capsys):
    students = [[40.0, 61.5], [44.0, 52.0]]
    folders = [make(f's{seed}', student, student[::-1], seed=seed)
               for seed, student in enumerate(students)]
    folders.append(make('supervised', [30.0], epochs=3, classes=['a', 'b|c', 'd']))
    path = str(tmp_path / 'runs.csv')
    rows, _ = report(capsys, *folders + ['--csv', path])
    with open(path, newline='') as file:
        both, alone = csv.DictReader(file)
    assert both['labeled'] == rows[0]['labeled list']
    assert both['val_sha256'] == known('val')['sha256']
    assert float(both['student_best_mean']) == np.mean([61.5, 52.0])
    assert float(both['student_best_deviation']) == pytest.approx(np.std([61.5, 52.0], ddof=1))
    assert float(both['teacher_last_mean']) == np.mean([40.0, 44.0])
    assert (both['student_best_epochs'], both['teacher_best_epochs']) == ('2; 2', '1; 1')
    assert (both['runs'], both['seeds'], both['finished']) == ('2', '0; 1', 'True')
    assert both['folders'] == '; '.join(folders[:2])
    assert (both['protocol'], both['absent'], both['processes']) == ('original', 'skip', '1')
    assert (both['config.selection'], both['config.epochs']) == ('class_max', '2')
    assert (alone['finished'], alone['epochs_done']) == ('False', '1')
    assert alone['config.selection'] == ''
    assert (alone['student_best_deviation'], alone['teacher_best_mean']) == ('', '')
    assert json.loads(alone['config.classes']) == ['a', 'b|c', 'd']
    assert 'b\\|c' in rows[1]['differs in']


def test_files_that_cannot_be_written(make, tmp_path, capsys):
    folder, path = make('a', [40.0]), str(tmp_path / 'nowhere' / 'x')
    assert path in refused(capsys, folder, '--csv', path)
    pytest.importorskip('matplotlib')
    assert path in refused(capsys, folder, '--plot', path + '.png')
    assert 'x.doc' in refused(capsys, folder, '--plot', str(tmp_path / 'x.doc'))


def test_a_curve_is_the_mean_over_seeds(make):
    row, = make_rows(find_runs([
        make('a', [40.0, 50.0, 60.0], [1.0, 2.0, 3.0]),
        make('b', [44.0, 51.0, 63.0], [2.0, 4.0, 6.0], seed=1)])[0])
    steps, means, deviations = curve(row, 'student')
    assert steps == [50, 100, 150] and means == [42.0, 50.5, 61.5]
    assert deviations == pytest.approx([np.std(pair, ddof=1) for pair in
                                        ((40, 44), (50, 51), (60, 63))])
    assert curve(row, 'teacher')[1] == [1.5, 3.0, 4.5]


def test_curves_of_single_runs_and_of_methods_without_a_teacher(make):
    row, = make_rows(find_runs([make('a', [40.0, 50.0])])[0])
    assert curve(row, 'student') == ([50, 100], [40.0, 50.0], [None, None])
    assert curve(row, 'teacher') is None


def test_the_plot(make, tmp_path, capsys, monkeypatch):
    pytest.importorskip('matplotlib')
    from matplotlib import figure
    figures, real = [], figure.Figure.savefig
    monkeypatch.setattr(figure.Figure, 'savefig',
                        lambda self, *args, **kw: (figures.append(self), real(self, *args, **kw)))
    folders = [make('a', [40.0, 50.0], [41.0, 51.0]), make('b', [44.0, 51.0], [42.0, 52.0], seed=1),
               make('c', [30.0, 31.0]),
               make('d', [20.0, 21.0], protocol='sliding_window')]
    path = tmp_path / 'curves.png'
    report(capsys, *folders + ['--plot', str(path)])
    assert path.read_bytes().startswith(b'\x89PNG')
    first, second = figures[0].axes  # different protocols have separate axes
    curves = {(line.get_linestyle(), line.get_color()): list(line.get_ydata())
              for line in first.lines if len(line.get_xdata())}
    assert curves == {('--', 'C0'): [42.0, 50.5], ('-', 'C0'): [41.5, 51.5],
                      ('--', 'C1'): [30.0, 31.0]}
    assert len(first.collections) == 2  # bands only for the row with two seeds
    band = first.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(50.5 + np.std([50, 51], ddof=1))
    assert band.min() == pytest.approx(42 - np.std([40, 44], ddof=1))
    labels = [text.get_text() for text in first.get_legend().get_texts()]
    assert labels[:2] == ['student', 'teacher'] and len(labels) == 4
    assert labels[2].startswith('1: DSSN') and 'n\xa0=\xa02' in labels[2]
    # A single evaluation has no line, so student and teacher have different markers.
    markers = {line.get_linestyle(): line.get_marker()
               for line in first.lines if len(line.get_xdata())}
    assert markers['--'] != markers['-'] and 'None' not in markers.values()
    assert 'sliding_window' in second.get_title() and 'optimizer steps' in second.get_xlabel()


def test_a_plot_over_labeled_crops(make, tmp_path, monkeypatch):
    pytest.importorskip('matplotlib')
    from matplotlib import figure
    figures = []
    monkeypatch.setattr(figure.Figure, 'savefig', lambda self, *args, **kw: figures.append(self))
    # 50 steps of an epoch: of 6 labeled images on one process, of 2 on each of four.
    rows = make_rows(find_runs([
        make('a', [40.0, 50.0], labeled_batch_size=6),
        make('b', [30.0, 31.0], line={'processes': 4}, batch_size=2)])[0])
    plot_curves(tmp_path / 'curves.png', rows, over_crops=True)
    axis, = figures[0].axes
    assert [list(line.get_xdata()) for line in axis.lines if len(line.get_xdata())] == [
        [300, 600], [400, 800]]
    assert axis.get_xlabel() == 'labeled crops seen'


def test_without_matplotlib_there_is_the_table_and_a_remedy(make, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    folder = make('a', [40.0])
    assert main([folder, '--plot', str(tmp_path / 'x.png')]) == 1
    printed = capsys.readouterr()
    assert 'pip install matplotlib' in printed.err and '40.00' in printed.out
    assert main([folder]) == 0


# ---- errors

def test_folders_without_a_run(make, tmp_path, capsys):
    good = make('a', [40.0])
    (tmp_path / 'empty').mkdir()
    for bad in (str(tmp_path / 'empty'), str(tmp_path / 'nowhere'),
                os.path.join(good, 'config.yaml')):
        assert bad in refused(capsys, good, bad)


@pytest.mark.parametrize('bad', ['{"epoch": 2, "iteration": 1}', '{"epoch"', '[]'])
def test_broken_lines_are_named(make, capsys, bad):
    folder = make('a', [40.0])
    path = os.path.join(folder, 'metrics.jsonl')
    with open(path, 'a') as file:
        file.write(bad + '\n')
    assert path + ' line 2: ' in refused(capsys, folder)


def test_a_broken_config_is_named(make, capsys):
    folder = make('a', [40.0])
    path = os.path.join(folder, 'config.yaml')
    with open(path, 'a') as file:
        file.write('colour: red\n')
    message = refused(capsys, folder)
    assert path in message and "'colour'" in message


def test_the_command(make):
    folder = make('a', [40.0])
    command = [sys.executable, '-m', 'dssn', 'report']
    env = dict(os.environ, PYTHONIOENCODING='utf-8')
    done = subprocess.run(command + [folder], cwd=ROOT, stdout=subprocess.PIPE, env=env, check=True)
    assert '| 40.00 |' in done.stdout.decode('utf-8')
    assert subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, env=env).returncode == 2


# ---- real runs

def test_runs_as_training_leaves_them(tiny_world, capsys):
    world = tiny_world(n_unlabeled=2, n_val=1)
    finals = {'student': [], 'teacher': []}
    for seed in (0, 1):
        run = start(world.load(seed=seed, save_path=f'{world.save_path}/seed{seed}'), World())
        run.fit()
        with open(os.path.join(run.cfg.save_path, 'metrics.jsonl')) as file:
            evaluations = [json.loads(line) for line in file][:-1]
        for role in finals:
            finals[role].append([line[role] for line in evaluations])
    capsys.readouterr()
    (row,), _ = report(capsys, world.save_path)
    assert (row['data set'], row['method'], row['runs']) == ('tiny', 'DSSN', '2 (seeds 0, 1)')
    for role, scores in finals.items():
        assert row[role + ' best'] == stated([max(line) for line in scores])
        assert row[role + ' last'] == stated([line[-1] for line in scores])
    assert row['labeled list'].startswith('own list, 5 lines')
