"""Kept runs: the copied files, their use instead of run folders, and results on the page."""
import importlib.util
import json
import os
import shutil

import pytest
import yaml
from commands import experiments as main, report
from stand_in import invented_records
from test_experiments import here, planned, ran, records, write  # noqa: F401 (here is a fixture)

from dssn import config
from dssn.tools.experiments import grid, previous_page
from dssn.tools.experiments.portable import leads_outside
from dssn.tools.experiments.progress import progress_of

pytestmark = pytest.mark.skipif(os.name != 'posix', reason='shell scripts')
TWO = {'supervised': {'method': 'supervised'}, 'DSSN': {}}


@pytest.fixture
def tidy(here):  # noqa: F811
    """Factory of a `Checkout` whose config has no path outside the checkout except data_root."""
    def make(keys=None, **experiment):
        checkout = here(keys, **experiment)
        with open('configs/tiny.yaml') as file:
            content = yaml.safe_load(file)
        shutil.copy(content['val_id_path'], 'splits/tiny/val.txt')
        content['val_id_path'] = 'splits/tiny/val.txt'
        for name in ('labeled_id_path', 'unlabeled_id_path', 'save_path'):
            del content[name]
        with open('configs/tiny.yaml', 'w') as file:
            yaml.safe_dump(content, file)
        return checkout
    return make


def fabricate(run, score=40.0, epochs=None):
    """Write invented records of a run: as many epochs as planned, or fewer."""
    os.makedirs(run.folder)
    with open(os.path.join(run.folder, 'metrics.jsonl'), 'w') as file:
        file.writelines(json.dumps(line) + '\n' for line in invented_records(run, score, epochs))
    with open(os.path.join(run.folder, 'config.yaml'), 'w') as file:
        file.write('# labeled list: a text\n' + config.dump(run.cfg))


def tree(folder):
    """{path: (content, time stamp)} of all files below."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            with open(path, 'rb') as file:
                found[path] = file.read(), os.stat(path).st_mtime_ns
    return found


def refusal(capsys, *arguments):
    capsys.readouterr()
    assert main(list(arguments)) == 1
    error = capsys.readouterr().err
    assert error.startswith(f'python -m dssn experiments {arguments[0]}: error: ')
    assert error.count('\n') == 1
    return error


def page():
    with open('docs/results.md') as file:
        return file.read()


def tables(text):
    return [line for line in text.splitlines() if line.startswith('|')]


# ---- instead of folders

@pytest.mark.slow
def test_the_page_the_table_and_the_list_from_kept_runs_alone(tidy, capsys):
    checkout = tidy(about='What it shows.', findings='It was seen.', reference='supervised',
                    variants=TWO)
    table = tables(ran(checkout))
    assert main(['page', 'experiments/mine.yaml', '--images', '1']) == 0
    with_folders = page()
    assert report(['exp']) == 0
    reported = tables(capsys.readouterr().out)

    assert main(['keep', 'experiments/mine.yaml']) == 0
    assert '4 runs: 4 kept now, 0 before, 0 not finished' in capsys.readouterr().out
    kept = tree('experiments/results')
    assert set(kept) == {
        f'experiments/results/mine/all/{variant}-seed{seed}/{name}'
        for variant in TWO for seed in (1, 2) for name in ('config.yaml', 'metrics.jsonl')}
    assert main(['keep', 'experiments/mine.yaml']) == 0
    assert '4 runs: 0 kept now, 4 before' in capsys.readouterr().out
    assert tree('experiments/results') == kept

    for run in planned():
        folder = f'experiments/results/mine/all/{run.variant}-seed{run.seed}'
        with open(os.path.join(run.folder, 'metrics.jsonl'), 'rb') as file:
            assert kept[f'{folder}/metrics.jsonl'][0] == file.read()
        path = f'{folder}/config.yaml'
        assert config.load(path) == config.load(os.path.join(run.folder, 'config.yaml'), {
            'data_root': 'data/tiny'})
        assert b'# labeled list: own list, 5 lines' in kept[path][0]
    for content, _ in kept.values():
        assert str(os.path.dirname(checkout.root)).encode() not in content

    shutil.rmtree('exp')
    assert main(['keep', 'experiments/mine.yaml']) == 0
    assert main(['list', 'experiments/mine.yaml']) == 0
    listed = capsys.readouterr().out
    assert '4 runs: 0 done, 4 kept, 0 started, 0 to do' in listed
    assert 'kept    DSSN, split all, seed 2, 8 steps: experiments/results/mine/all/DSSN-seed2 ' \
        '(2 of 2 epochs, student' in listed
    assert main(['run', 'experiments/mine.yaml']) == 0
    out = capsys.readouterr().out
    assert out.count('kept already: ') == 4 and tables(out) == table and not os.path.exists('exp')
    assert report(['experiments/results']) == 0
    assert tables(capsys.readouterr().out) == reported

    assert main(['page', 'experiments/mine.yaml', '--images', '1']) == 0
    assert page() == with_folders  # with the image that was rendered before
    shutil.rmtree('docs')
    assert main(['page', 'experiments/mine.yaml']) == 0
    assert tables(page()) == tables(with_folders) and 'It was seen.' in page()
    assert 'no image of predictions: it needs the weights' in page()
    plots = importlib.util.find_spec('matplotlib') is not None
    assert ('(results/mine-all.png)' in page()) is plots
    assert os.path.exists('docs/results/mine-all.png') is plots


def test_a_kept_run_with_other_settings_is_refused(tidy, capsys):
    tidy(seeds=[1], variants=TWO)
    for run in planned():
        fabricate(run)
    assert main(['keep', 'experiments/mine.yaml']) == 0
    shutil.rmtree('exp')
    for command in ('list', 'run', 'page', 'keep'):
        error = refusal(capsys, command, 'experiments/mine.yaml', '--set', 'gate=0.5')
        assert 'experiments/results/mine/all/DSSN-seed1: holds a run with other settings than ' \
            'DSSN, split all, seed 1: gate was 0.92, is 0.5.' in error, error
        assert '--kept none' in error
    assert main(['list', 'experiments/mine.yaml', '--set', 'gate=0.5', '--kept', 'none']) == 0
    assert '2 runs: 0 done, 0 started, 2 to do' in capsys.readouterr().out
    with open('splits/tiny/all/labeled.txt', 'a') as file:
        file.write('images/labeled9.jpg masks/labeled9.png\n')
    assert 'supervised, split all, seed 1: the labeled list has changed' in refusal(
        capsys, 'list', 'experiments/mine.yaml')


def test_another_run_under_the_name_of_a_kept_one_is_not_written(tidy, capsys):
    tidy(seeds=[1, 2], variants={'DSSN': {}})
    fabricate(planned()[0])
    assert main(['keep', 'experiments/mine.yaml']) == 0
    before = tree('experiments/results')
    shutil.rmtree('exp')
    for run in planned('gate=0.5'):
        fabricate(run)
    assert 'DSSN-seed1: holds a run with other settings' in refusal(
        capsys, 'keep', 'experiments/mine.yaml', '--set', 'gate=0.5')
    assert tree('experiments/results') == before  # seed 2 is not written either
    # The same run trained again: the first records stay, and this is reported.
    shutil.rmtree('exp')
    fabricate(planned()[0], score=60.0)
    capsys.readouterr()
    assert main(['keep', 'experiments/mine.yaml']) == 0
    assert 'already kept, from another training: DSSN, split all, seed 1' in capsys.readouterr().out
    assert tree('experiments/results') == before


def test_only_finished_runs_are_kept(tidy, capsys):
    tidy({'epochs': 3}, seeds=[1, 2, 3], variants={'DSSN': {}})
    first, second, _ = planned()
    fabricate(first, epochs=2)
    assert 'none of its 3 runs is finished in exp, and none is kept in experiments/results' in \
        refusal(capsys, 'keep', 'experiments/mine.yaml')
    fabricate(second)
    assert main(['keep', 'experiments/mine.yaml']) == 0
    out = capsys.readouterr().out
    assert 'not finished, not kept: DSSN, split all, seed 1 (2 of 3 epochs)' in out
    assert 'not finished, not kept: DSSN, split all, seed 3 (0 of 3 epochs)' in out
    assert '3 runs: 1 kept now, 0 before, 2 not finished' in out
    assert os.listdir('experiments/results/mine/all') == ['DSSN-seed2']
    # A kept run without its last records is refused.
    shutil.rmtree('exp')
    path = 'experiments/results/mine/all/DSSN-seed2/metrics.jsonl'
    with open(path) as file:
        lines = file.readlines()
    with open(path, 'w') as file:
        file.writelines(lines[:2])
    assert 'DSSN-seed2: its records end before the run does (epoch 2 of 3)' in refusal(
        capsys, 'list', 'experiments/mine.yaml')


def test_experiments_that_share_runs_share_kept_ones(tidy):
    tidy(seeds=[1], variants=TWO)
    for run in planned():
        fabricate(run)
    assert main(['keep', 'experiments/mine.yaml']) == 0
    shutil.rmtree('exp')
    os.rename('experiments/mine.yaml', 'experiments/first.yaml')
    write(seeds=[1], exp='mine', variants={'DSSN': {}, 'other': {'gate': 0.5}})
    runs = grid.plan_runs(grid.read_experiment('experiments/mine.yaml'), kept='experiments/results')
    assert [progress_of(run).state for run in runs] == ['kept', 'to do']


def test_weights_that_were_not_kept_are_trained_again_where_they_are_needed(tidy, capsys):
    start_from = '{out}/{dataset}/supervised/mine-first-seed1/{split}/latest.pth'
    checkout = tidy(seeds=[1], variants={
        'first': {'method': 'supervised'}, 'second': {'init_from': start_from}})
    first, second = planned()
    fabricate(first)
    assert main(['keep', 'experiments/mine.yaml']) == 0
    shutil.rmtree('exp')
    out = ran(checkout)
    assert 'run 1 of 2: first' in out and 'run 2 of 2: second' in out and 'kept already' not in out
    assert records(second)[-1]['kind'] == 'summary'
    # If both are kept, from another folder too, no weights are needed.
    shutil.rmtree('experiments/results')
    os.rename('exp', 'runs')
    shutil.rmtree('runs')
    experiment = grid.read_experiment('experiments/mine.yaml')
    for run in grid.plan_runs(experiment, os.path.abspath('runs')):
        fabricate(run)
    assert main(['keep', 'experiments/mine.yaml', '--out', os.path.abspath('runs')]) == 0
    kept = config.load('experiments/results/mine/all/second-seed1/config.yaml')
    assert kept.init_from == 'exp/tiny/supervised/mine-first-seed1/all/latest.pth'
    assert kept.save_path == 'exp/tiny/DSSN/mine-second-seed1/all'
    shutil.rmtree('runs')
    capsys.readouterr()
    for out in ('exp', os.path.abspath('runs')):
        assert main(['run', 'experiments/mine.yaml', '--out', out]) == 0
        assert capsys.readouterr().out.count('kept already: ') == 2


def test_an_array_job_needs_the_weights_of_the_runs_before(tidy, capsys):
    tidy(seeds=[1], variants={'supervised': {'method': 'supervised'}})
    fabricate(planned()[0])
    assert main(['keep', 'experiments/mine.yaml']) == 0
    shutil.rmtree('exp')
    os.rename('experiments/mine.yaml', 'experiments/first.yaml')
    write(seeds=[1], after='experiments/first.yaml', variants={'DSSN': {}})
    os.rename('experiments/results/mine', 'experiments/results/first')
    error = refusal(capsys, 'run', 'experiments/mine.yaml', '--task', '0')
    assert 'run experiments/first.yaml`, and with --kept none if their records are kept' in error


# ---- paths of the machine

@pytest.mark.parametrize('path, outside', [
    ('', False), ('splits/a/b.txt', False), ('a/../b', False), ('..b/c', False), ('/a/b', True),
    ('../a', True), ('a/../../b', True), ('~/a', True)])
def test_paths_that_lead_out_of_the_repository(path, outside):
    assert leads_outside(path) is outside


@pytest.mark.parametrize('key', ['labeled_id_path', 'val_id_path', 'select_on'])
def test_a_list_outside_is_refused_and_one_inside_made_relative(tidy, tmp_path, capsys, key):
    tidy(seeds=[1], variants={'DSSN': {}})
    source = 'splits/tiny/val.txt' if key != 'labeled_id_path' else 'splits/tiny/all/labeled.txt'
    for path in (os.path.abspath('splits/tiny/other.txt'), str(tmp_path / 'other.txt')):
        shutil.copy(source, path)
        setting = f'{key}={path}'
        fabricate(planned(setting)[0])
        command = ['keep', 'experiments/mine.yaml', '--set', setting]
        if path.startswith(os.getcwd()):
            assert main(command) == 0
            kept = config.load('experiments/results/mine/all/DSSN-seed1/config.yaml')
            assert getattr(kept, key) == 'splits/tiny/other.txt'
            run, = grid.plan_runs(grid.read_experiment('experiments/mine.yaml'), 'nowhere',
                                  [setting], 'experiments/results')
            assert progress_of(run).state == 'kept'
            shutil.rmtree('experiments/results')
            shutil.rmtree('exp')
        else:
            error = refusal(capsys, *command)
            assert f'{key} = {path} leads out of the repository' in error
            assert 'exp/tiny/DSSN/mine-DSSN-seed1/all/config.yaml' in error
            assert not os.path.exists('experiments/results')


def test_a_folder_that_cannot_be_written_is_named(tidy, capsys):
    tidy(seeds=[1], variants={'DSSN': {}})
    fabricate(planned()[0])
    with open('results', 'w'):
        pass
    assert '--to: results/mine/all/DSSN-seed1 cannot be written' in refusal(
        capsys, 'keep', 'experiments/mine.yaml', '--to', 'results')


# ---- results on the page are not lost

def no_pictures(monkeypatch):
    monkeypatch.setattr('dssn.tools.experiments.page.curve_lines', lambda *arguments: [])


def test_a_section_whose_runs_are_missing_stays_and_gets_a_note(tidy, capsys, monkeypatch):
    no_pictures(monkeypatch)
    tidy(seeds=[1, 2], variants=TWO, about='What it shows.')
    for run in planned():
        fabricate(run)
    assert main(['page', 'experiments/mine.yaml']) == 0
    before = page()
    shutil.rmtree('exp')
    texts = []
    for _ in range(2):
        capsys.readouterr()
        assert main(['page', 'experiments/mine.yaml']) == 0
        assert 'mine: no finished run is in exp or kept; its section is not changed' in \
            capsys.readouterr().err
        texts.append(page())
    assert texts[0] == texts[1] and texts[0].count(previous_page.NOTE) == 1
    assert texts[0].replace(previous_page.NOTE + '\n\n', '') == before
    # It stays without its lists too, and the missing list is reported.
    shutil.rmtree('splits/tiny/all')
    capsys.readouterr()
    assert main(['page', 'experiments/mine.yaml']) == 0 and page() == texts[0]
    assert 'splits/tiny/all/unlabeled.txt: no such id list' in capsys.readouterr().err


def test_runs_that_would_be_lost_are_named(tidy, capsys, monkeypatch):
    no_pictures(monkeypatch)
    tidy(seeds=[1, 2], variants=TWO)
    for run in planned():
        fabricate(run)
    assert main(['page', 'experiments/mine.yaml']) == 0
    before = page()
    shutil.rmtree(planned()[3].folder)
    assert 'mine has results of 1 runs that no longer exist, neither in their folders nor ' \
        'kept: DSSN, split all, seed 2.' in refusal(capsys, 'page', 'experiments/mine.yaml')
    assert page() == before
    # An experiment that is not named, and a section without an experiment.
    shutil.copy('experiments/mine.yaml', 'experiments/other.yaml')
    assert 'would drop: mine;' in refusal(capsys, 'page', 'experiments/other.yaml')
    with open('docs/results.md', 'w') as file:
        file.write('# Results\n\n## By hand\n\nA remark.\n')
    assert 'would drop: By hand;' in refusal(capsys, 'page', 'experiments/mine.yaml')


def test_the_committed_page_is_read_as_it_was_written():
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    found = previous_page.read_sections(os.path.join(root, 'docs/results.md'))
    assert previous_page.runs_of(found['shapes']) == {
        ('20', variant, seed) for seed in (1, 2, 3)
        for variant in ('supervised', 'fixmatch', 'unimatch', 'DSSN', 'all_labeled')}
    assert not previous_page.runs_of(found['pascal'])  # published scores are no runs
