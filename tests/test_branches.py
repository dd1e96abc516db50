"""DSSN with branches switched off: terms, weights and passes against a slow recomputation."""
import copy
import itertools

import pytest
import torch
from test_losses import slow_contrast, slow_masked_cross_entropy
from test_methods import (
    VECTORS,
    Recorder,
    close,
    config,
    network,
    random_batch,
    slow_labeled_loss,
    slow_labels,
    slow_paste,
    slow_share,
    slow_teacher,
)

from dssn import config as configs, ema
from dssn.config import UserError
from dssn.methods import build
from dssn.methods.dssn import DSSN
from dssn.methods.dssn_ablations import AblatedDSSN

SWITCHES = [dict(image_views=i, feature_views=f, contrast=contrast, feature_labels=who)
            for i, f, contrast, who in itertools.product(
                (0, 1, 2), (0, 1, 2), (True, False), ('student', 'teacher'))
            if (i or f) and (f or who == 'student')]


def slow_step(student, teacher, x, u, v, cfg, warm_up):
    """(losses, shares): only the passes that the switches leave."""
    n = len(x.image)
    views = [(u.strong1, v.strong1, u.box1), (u.strong2, v.strong2, u.box2)][:cfg.image_views]
    losses, shares = {}, {}
    if cfg.feature_views:
        clean, *fp = student(torch.cat([x.image, u.weak]), perturb=len(u.weak),
                             views=cfg.feature_views)
    else:
        clean, fp = student(x.image), []
    s = student(torch.cat([slow_paste(*view) for view in views])).chunk(len(views)) if views else []
    taught = own = None
    if views and not warm_up:
        taught = slow_teacher(teacher, u, v)
    elif cfg.feature_labels == 'teacher':
        with torch.no_grad():
            taught = teacher(u.weak), None
    losses['supervised'] = slow_labeled_loss(clean[:n], x.label, cfg)
    if fp:
        own = clean[n:].detach()
        label, selected = slow_labels(own if cfg.feature_labels == 'student' else taught[0], cfg)
        for i, view in enumerate(fp, 1):
            losses[f'feature{i}'] = slow_masked_cross_entropy(view, label, selected, u.valid)
        shares['selected_feature'] = slow_share(selected, u.valid)
    if views and not warm_up:
        for i, (strong, view) in enumerate(zip(s, views), 1):
            label, selected = slow_labels(slow_paste(*taught, view[2]), cfg)
            valid = slow_paste(u.valid, v.valid, view[2])
            losses[f'image{i}'] = slow_masked_cross_entropy(strong, label, selected, valid)
            shares[f'selected_image{i}'] = slow_share(selected, valid)
        if fp:
            shares['agreement'] = slow_share(own.argmax(1) == taught[0].argmax(1), u.valid)
    if cfg.contrast and len(s) == 2:
        losses['contrast_image'] = slow_contrast(*s)
    if cfg.contrast and len(fp) == 2:
        losses['contrast_feature'] = slow_contrast(*fp)
    return losses, shares


def slow_total(losses, cfg):
    """Pseudo-labels: the mean over levels that are on of the mean over a level's views."""
    means = []
    for level, views in (('image', cfg.image_views), ('feature', cfg.feature_views)):
        if views:
            means.append(sum(losses.get(f'{level}{i + 1}', 0) for i in range(views)) / views)
    contrast = losses.get('contrast_image', 0) + losses.get('contrast_feature', 0)
    return (losses['supervised'] + sum(means) / len(means) + contrast / 100) / 2


@pytest.mark.parametrize('epoch, labeled', [(0, 1), (1, 1), (1, 3)])
@pytest.mark.parametrize('switches', SWITCHES, ids=lambda s: '-'.join(map(str, s.values())))
def test_a_whole_step(switches, epoch, labeled):
    cfg = config(warm_up_epochs=1, **switches)
    student, teacher = network(1), ema.make_teacher(network(2))
    x, u, v = random_batch(1, 33, 33, labeled=labeled)
    slow = copy.deepcopy(student), copy.deepcopy(teacher)
    method = build(cfg)
    method.start_step(epoch, 9, teacher)
    slow[1].train(epoch == 0)
    torch.manual_seed(7)
    terms = method(student, teacher, x, u, v)
    torch.manual_seed(7)
    losses, shares = slow_step(*slow, x, u, v, cfg, warm_up=epoch == 0)
    close(terms.losses, losses)
    close(terms.fractions, shares, rel=1e-6)
    assert method.total(terms.losses).item() == pytest.approx(slow_total(losses, cfg), rel=1e-9)
    for one, two in zip((student, teacher), slow):
        for (name, a), c in zip(one.state_dict().items(), two.state_dict().values()):
            assert (a - c).abs().max() <= 1e-9, name
    method.total(terms.losses).backward()  # every parameter of the student has its gradient
    assert all(p.grad is not None for p in student.parameters())


@pytest.mark.parametrize('switches, warm_up, student_passes, teacher_passes', [
    (dict(), False, [(4, 2), (4, 0)], [4]), (dict(), True, [(4, 2), (4, 0)], []),
    (dict(image_views=0), False, [(4, 2)], []),
    (dict(image_views=0, feature_labels='teacher'), False, [(4, 2)], [2]),
    (dict(image_views=0, feature_labels='teacher'), True, [(4, 2)], [2]),
    (dict(feature_views=0), False, [(2, 0), (4, 0)], [4]),
    (dict(feature_views=0), True, [(2, 0), (4, 0)], []),
    (dict(image_views=1), False, [(4, 2), (2, 0)], [4]),
    (dict(feature_labels='teacher'), False, [(4, 2), (4, 0)], [4])], ids=str)
def test_what_is_off_costs_no_pass(switches, warm_up, student_passes, teacher_passes):
    student, teacher = Recorder(1), ema.make_teacher(Recorder(2))
    method = build(config(warm_up_epochs=2 * warm_up, **switches))
    method.start_step(1, 9, teacher)
    method(student, teacher, *random_batch(2, 7, 9))
    assert [(len(call[0]), call[1]) for call in student.calls] == student_passes
    assert [len(call[0]) for call in teacher.calls] == teacher_passes


@pytest.mark.parametrize('watched', [True, False])
@pytest.mark.parametrize('switches, views', [
    (dict(image_views=0), ['weak']), (dict(feature_views=0), ['strong1', 'strong2']),
    (dict(image_views=1, feature_views=1), ['strong1', 'weak'])], ids=str)
def test_only_what_was_predicted_can_be_watched(switches, views, watched):
    student, teacher = Recorder(1), ema.make_teacher(Recorder(2))
    method = build(config(**switches))
    method.start_step(1, 9, teacher, watched)
    terms = method(student, teacher, *random_batch(2, 7, 9))
    assert sorted(terms.predictions) == (views if watched else [])


def test_labels_of_the_teacher_are_not_the_students():
    student, teacher = Recorder(1), ema.make_teacher(Recorder(2))
    found = []
    for who in ('student', 'teacher'):
        method = build(config(feature_labels=who))
        method.start_step(1, 9, teacher, True)
        terms = method(student, teacher, *random_batch(2, 7, 9))
        found.append(terms.labels['feature'].label)
        # The student's prediction is watched, whoever labels.
        assert torch.equal(terms.predictions['weak'], (found[0]))
    assert not torch.equal(*found)


@pytest.mark.parametrize('switches, weights', [
    (dict(), (1 / 8, 1 / 8)), (dict(image_views=1, feature_views=1), (1 / 4, 1 / 4)),
    (dict(image_views=0), (0, 1 / 4)), (dict(feature_views=0), (1 / 4, 0)),
    # The weights of UniMatch and of FixMatch.
    (dict(feature_views=1), (1 / 8, 1 / 4)), (dict(image_views=1, feature_views=0), (1 / 2, 0))],
    ids=str)
def test_weights_of_the_views(switches, weights):
    method, zero = build(config(**switches)), torch.tensor(0.0)
    for name, weight in zip(('image1', 'feature1'), weights):
        losses = {'supervised': zero, 'contrast_image': zero, 'contrast_feature': zero,
                  'feature1': zero, 'feature2': zero, name: torch.tensor(1.0)}
        assert method.total(losses).item() == weight
    full = {name: torch.tensor(value) for name, value in VECTORS['total']['terms'].items()}
    assert build(config()).total(full).item() == pytest.approx(VECTORS['total']['after'], rel=1e-6)


@pytest.mark.parametrize('content, parts', [
    ('image_views: 0\nfeature_views: 0\n', ['image_views = 0 and feature_views = 0', 'supervised']),
    ('feature_views: 0\nlean: true\n', ['lean = true', 'feature_views = 0']),
    ('feature_views: 0\nfeature_labels: teacher\n', ['feature_labels = teacher']),
    ('image_views: 3\n', ['image_views = 3', 'at most 2']),
    ('feature_labels: nobody\n', ['feature_labels = nobody', 'student, teacher'])])
def test_switches_that_contradict_are_refused(tmp_path, content, parts):
    path = tmp_path / 'mine.yaml'
    path.write_text('dataset: mine\nnclass: 3\n' + content)
    with pytest.raises(UserError) as error:
        configs.load(str(path))
    text = str(error.value)
    assert text.startswith(str(path)) and all(part in text for part in parts)


@pytest.mark.parametrize('gate, selected', [(0.0, True), (0.92, False)])
def test_a_gate_of_0_is_none(gate, selected):
    from dssn.pseudo_labels import class_max
    logits = torch.zeros(1, 4, 1, 1)  # a confidence of 1/4, the peak of its class
    assert class_max(logits, gate, 0.96).item() == selected


@pytest.mark.parametrize('step, warm_up', [(0, 0), (5, 0), (5, 2)])
def test_ablations_with_default_values_make_the_published_step(step, warm_up):
    cfg, batch = config(warm_up_epochs=warm_up), random_batch(3, 12, 14)
    assert type(build(cfg)) is DSSN and not AblatedDSSN.applies(cfg)
    found = []
    for method in (DSSN(cfg), AblatedDSSN(cfg)):
        student, teacher = network(0), network(1)
        method.start_step(1, step, teacher, watched=True)
        torch.manual_seed(3)
        terms = method(student, teacher, *batch)
        method.total(terms.losses).backward()
        found.append((terms, [p.grad for p in student.parameters()]))
    (ours, gradients), (ablated, others) = found
    for part in ('losses', 'fractions', 'predictions'):
        assert list(getattr(ours, part)) == list(getattr(ablated, part))
        for name, value in getattr(ours, part).items():
            assert torch.equal(value, getattr(ablated, part)[name]), name
    assert ours.labels.keys() == ablated.labels.keys()
    for branch, known in ours.labels.items():
        assert all(torch.equal(*pair) for pair in zip(known, ablated.labels[branch]))
    assert all(torch.equal(*pair) for pair in zip(gradients, others)) and gradients


@pytest.mark.parametrize('change', [
    dict(image_views=1), dict(feature_views=0), dict(contrast=False),
    dict(feature_labels='teacher'), dict(lean=True)])
def test_a_structural_key_chooses_the_ablations(change):
    assert type(build(config(**change))) is AblatedDSSN
