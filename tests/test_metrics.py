"""metrics.jsonl: read back line by line, and summed up."""
import itertools

import pytest

from dssn.errors import UserError
from dssn.run import metrics


def line(epoch, student, teacher=None, **more):
    return dict(kind='evaluation', epoch=epoch, iteration=10 * epoch, student=student,
                teacher=teacher, **more)


@pytest.fixture
def file(tmp_path):
    """Writes a metrics.jsonl; returns its path."""
    def write(text):
        path = tmp_path / 'metrics.jsonl'
        path.write_text(text)
        return str(path)
    return write


@pytest.mark.parametrize('last', ['', '{"kind": "evaluation", "epo', 'x'])
def test_a_line_that_was_cut_off_is_left_out(file, last):
    assert metrics.read(file('{"epoch": 1}\n{"kind": "other", "epoch": 2}\n' + last)) == [
        {'kind': 'evaluation', 'epoch': 1}, {'kind': 'other', 'epoch': 2}]


def test_a_whole_last_line_counts_without_its_line_end(file):
    found = metrics.read(file('{"epoch": 1}\n{"epoch": 2}'))
    assert [record['epoch'] for record in found] == [1, 2]


@pytest.mark.parametrize('bad', ['{"epoch": 1', '[1]', '{}', '{"epoch": "1"}', '{"epoch": true}',
                                 '', 'x' * 300])
def test_a_broken_line_is_named(file, bad):
    path = file('{"epoch": 1}\n' + bad + '\n{"epoch": 3}\n')
    with pytest.raises(UserError) as caught:
        metrics.read(path)
    message = str(caught.value)
    assert message.startswith(path + ' line 2: ') and len(message) < len(path) + 200


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match='nowhere.jsonl'):
        metrics.read(str(tmp_path / 'nowhere.jsonl'))


@pytest.mark.parametrize('change, key', [
    (dict(student=None), 'student'), (dict(student='40'), 'student'),
    (dict(teacher=None), 'teacher'), (dict(student=True), 'student'),
    (dict(iteration=None), 'iteration'),
    (dict(select_on={'student': 1.0}), 'select_on'), (dict(select_on=1.0), 'select_on'),
    (dict(lists=[]), 'lists'), (dict(lists={'val': {'text': 'x', 'lines': 3}}), 'lists')], ids=str)
def test_an_evaluation_without_a_score_is_named(change, key):
    good = line(1, 40.0, 50.0)
    assert metrics.evaluations([good, {'kind': 'summary', 'epoch': 1}, good], 'm') == [good, good]
    with pytest.raises(UserError, match=f'm line 3: {key} = '):
        metrics.evaluations([good, {'kind': 'other', 'epoch': 1}, dict(good, **change)], 'm')


def test_best_is_the_first_of_the_highest():
    lines = [line(2, 40.0, 1.0), line(4, 60.0, 9.0), line(6, 60.0, 8.0), line(8, 50.0, 9.0)]
    summary = metrics.summarise(lines, 'original')
    assert summary['best'] == {'student': {'miou': 60.0, 'epoch': 4},
                               'teacher': {'miou': 9.0, 'epoch': 4}}
    assert summary['last'] == {'student': {'miou': 50.0, 'epoch': 8},
                               'teacher': {'miou': 9.0, 'epoch': 8}}
    assert (summary['kind'], summary['evaluations'], summary['iteration']) == ('summary', 4, 80)


def slow_fall(scores):
    """As the rule reads: the last five all more than a point below the peak, for the first time."""
    def holds(known):
        if not known:
            return None
        top = max(score for _, score in known)
        peak = [item for item in known if item[1] == top][0]
        last = known[-5:]
        return peak if len(last) == 5 and all(score < top - 1 for _, score in last) else None
    return holds(scores) if holds(scores[:-1]) is None else None


def numbered(*values):
    return [(2 * i, float(value)) for i, value in enumerate(values, 1)]


@pytest.mark.parametrize('values, peak', [
    ((), None), ((50,), None), ((10, 20, 30, 40, 50, 60), None),
    ((60, 58, 58, 58, 58, 58), (2, 60.0)), ((60, 58, 58, 58, 58), None),
    ((60, 58, 58, 58, 58, 58, 57), None),          # said one evaluation ago
    ((60, 59, 59, 59, 59, 59), None),              # no more than a point
    ((60, 58, 58, 59.5, 58, 58, 58), None),        # came back in between
    ((60, 50, 50, 50, 50, 50, 59.5, 50, 50, 50, 50, 50), (2, 60.0)),
    ((40, 60, 60, 50, 50, 50, 50, 50), (4, 60.0)),  # the first of the highest
    ((60, 50, 50, 50, 50, 50, 70, 60, 60, 60, 60, 60), (14, 70.0)),
])
def test_a_fall_is_said_once(values, peak):
    assert metrics.fall(numbered(*values)) == peak


@pytest.mark.parametrize('length', range(9))
def test_falls_of_every_short_run(length):
    for values in itertools.product([50, 55.5, 56], repeat=length):
        assert metrics.fall(numbered(*values)) == slow_fall(numbered(*values))


def test_the_text_of_a_fall():
    lines = [line(2 * i, 40.0, t) for i, t in enumerate([55.0, 56.25, 50, 50, 50, 50, 49.5], 1)]
    assert metrics.fall_text(lines, 'student') is None
    text = metrics.fall_text(lines + [{'kind': 'summary', 'epoch': 14}], 'teacher')
    for word in ('warning', 'teacher', 'on val', '56.25 at epoch 4', '49.50 at epoch 14',
                 't_best.pth', '5 evaluations'):
        assert word in text
    assert '\n' not in text and metrics.fall_text(lines[:-1], 'teacher') is None
    assert metrics.fall_text([], 'teacher') is None
    assert metrics.fall_text([line(1, 40.0)], 'teacher') is None


def test_a_fall_is_of_the_scores_that_select():
    lines = [line(i, 80.0, select_on={'student': s}) for i, s in enumerate([9, 7, 7, 7, 7, 7.5], 1)]
    text = metrics.fall_text(lines, 'student')
    assert 'on select_on' in text and '9.00 at epoch 1' in text and '7.50 at epoch 6' in text
    assert ' best.pth' in text


def test_another_list_selects():
    lines = [line(1, 40.0, select_on={'student': 3.0}), line(2, 60.0, select_on={'student': 2.0})]
    summary = metrics.summarise(lines, 'original')
    assert summary['best'] == {'student': {'miou': 40.0, 'epoch': 1, 'select_on': 3.0},
                               'teacher': None}
    assert summary['last']['student'] == {'miou': 60.0, 'epoch': 2, 'select_on': 2.0}
    assert summary['selected_on'] == 'select_on'


def test_a_summary_says_what_the_run_recorded():
    old = metrics.summarise([line(1, 40.0)], 'sliding_window')
    assert (old['protocol'], old['absent'], old['processes'], old['lists'], old['seconds']) == (
        'sliding_window', 'skip', None, {}, None)
    lists = {'val': {'text': 'own list, 2 lines', 'lines': 2, 'sha256': 'a'}}
    new = metrics.summarise([line(1, 40.0, protocol='original', absent='zero', processes=4,
                                  lists=lists, seconds=12.5)], 'sliding_window')
    assert (new['protocol'], new['absent'], new['processes'], new['lists'], new['seconds']) == (
        'original', 'zero', 4, lists, 12.5)


def test_the_text_of_a_summary():
    lists = {'labeled': {'text': 'published pascal 92', 'lines': 92, 'sha256': 'b'},
             'val': {'text': 'own list, 2 lines', 'lines': 2, 'sha256': 'a'}}
    lines = [line(1, 70.126, 30.0, lists=lists, seconds=1.0), line(2, 40.0, 50.0, lists=lists,
                                                                 seconds=61.6)]
    text = metrics.text(metrics.summarise(lines, 'original'))
    assert [row.split() for row in text.splitlines()[1:-1]] == [
        ['mIoU', 'on', 'val', 'student', 'teacher'], ['best', '70.13', '50.00'],
        ['at', 'epoch', '1', '2'], ['last', '40.00', '50.00'], ['at', 'epoch', '2', '2']]
    assert len({len(row) for row in text.splitlines()[1:-1]}) == 1
    for word in ('2 epochs in 62 s', 'protocol original', 'left out of the mean',
                 'val: own list, 2 lines'):
        assert word in text.splitlines()[0]
    assert 'highest of 2 evaluations on val itself' in text.splitlines()[-1]


def test_the_text_without_a_teacher_or_a_selection():
    text = metrics.text(metrics.summarise([line(3, 40.0)], 'original'))
    assert [row.split() for row in text.splitlines()[1:-1]] == [
        ['mIoU', 'on', 'val', 'student'], ['best', '40.00'], ['at', 'epoch', '3'],
        ['last', '40.00'], ['at', 'epoch', '3']]
    assert 'nothing was selected' in text.splitlines()[-1]


def test_a_summary_marks_the_score_of_a_single_class():
    classes = {'a': {'sky': 100.0, 'road': None}, 'b': {'sky': 90.0, 'road': 0.0}}
    for student, marked in (('a', True), ('b', False)):
        found = metrics.summarise([line(1, 45.0, student_iou=classes[student])], 'original')
        text = metrics.text(found)
        assert ('warning: student: mIoU is the score of a single class' in text) == marked
        assert ('scored_classes' in found['best']['student']) == marked


def test_the_text_with_another_list():
    lines = [line(1, 40.0, 41.0, select_on={'student': 3.0, 'teacher': 4.0})]
    text = metrics.text(metrics.summarise(lines, 'original'))
    rows = [row.split() for row in text.splitlines()]
    assert rows.count(['mIoU', 'on', 'select_on', '3.00', '4.00']) == 2
    assert 'highest mIoU on select_on' in text.splitlines()[-1]
