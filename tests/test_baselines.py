"""FixMatch and UniMatch: whole steps against slow recomputations, and what flows where.

n labeled and B unlabeled images, C = 4 classes, H x W pixels; all in double precision.
"""
import copy

import pytest
import torch
from test_losses import numeric_gradient, slow_masked_cross_entropy
from test_methods import (
    CE,
    OHEM,
    Recorder,
    close,
    network,
    random_batch,
    slow_labeled_loss,
    slow_paste,
    slow_share,
)
from test_pseudo_labels import slow_fixed

from dssn import config as configs
from dssn.keys import FeatureViewsConfig
from dssn.methods.fixmatch import FixMatch
from dssn.methods.unimatch import UniMatch
from dssn.precision import Half

METHODS = [FixMatch, UniMatch]
VIEWS = {FixMatch: (1, 0), UniMatch: (2, 1)}  # strong views, perturbed copies


def config(**changes):
    keys = dict(nclass=4, backbone='resnet10', base_channels=4, decoder_channels=8, criterion=CE,
                conf_thresh=0.8)
    return FeatureViewsConfig(**dict(keys, **changes))


def slow_outputs(method, student, x, u, v):
    """(clean, [fp...], [s...], partner) by the passes that the sentences name."""
    strong, copies = VIEWS[method]
    student.eval()
    with torch.no_grad():
        partner = student(v.weak)
    student.train()
    both = torch.cat([x.image, u.weak])
    clean, *fp = student(both, perturb=len(u.weak), views=copies) if copies else [student(both)]
    views = [(u.strong1, v.strong1, u.box1), (u.strong2, v.strong2, u.box2)][:strong]
    s = student(torch.cat([slow_paste(*view) for view in views])).chunk(strong)
    return clean, fp, list(s), partner


def slow_terms(outputs, weak, x, u, v, cfg):
    """Losses and shares as floats; labels come from the logits `weak` of the unlabeled images."""
    clean, fp, s, partner = outputs
    losses = {'supervised': slow_labeled_loss(clean[:len(x.image)], x.label, cfg)}
    shares = {}
    if fp:
        selected = slow_fixed(weak, cfg.conf_thresh)
        losses['feature'] = slow_masked_cross_entropy(fp[0], weak.argmax(1), selected, u.valid)
        shares['selected_feature'] = slow_share(selected, u.valid)
    for i, (strong, boxes) in enumerate(zip(s, (u.box1, u.box2)), 1):
        mixed = slow_paste(weak, partner, boxes)
        selected, valid = slow_fixed(mixed, cfg.conf_thresh), slow_paste(u.valid, v.valid, boxes)
        losses[f'image{i}'] = slow_masked_cross_entropy(strong, mixed.argmax(1), selected, valid)
        shares[f'selected_image{i}'] = slow_share(selected, valid)
    return losses, shares


def slow_total(t):
    """L = 1/2 (L_x + L_s), or 1/2 [L_x + 1/2 * 1/2 (L_s1 + L_s2) + 1/2 L_fp]."""
    if 'feature' not in t:
        return (t['supervised'] + t['image1']) / 2
    return (t['supervised'] + (t['image1'] + t['image2']) / 4 + t['feature'] / 2) / 2


@pytest.mark.parametrize('criterion', [CE, OHEM], ids=['CE', 'OHEM'])
@pytest.mark.parametrize('epoch, step, n, b', [(0, 0, 2, 2), (0, 3, 1, 1), (4, 90, 2, 2),
                                               (4, 90, 3, 2), (4, 90, 1, 4)])
@pytest.mark.parametrize('method', METHODS)
def test_a_whole_step(method, epoch, step, n, b, criterion):
    cfg = config(criterion=criterion)
    student, (x, u, v) = network(1), random_batch(b, 33, 41, labeled=n)
    slow = copy.deepcopy(student)
    made = method(cfg)
    made.start_step(epoch, step, None)
    torch.manual_seed(7)
    terms = made(student, None, x, u, v)
    torch.manual_seed(7)  # the same channels dropped
    outputs = slow_outputs(method, slow, x, u, v)
    losses, shares = slow_terms(outputs, outputs[0][n:].detach(), x, u, v, cfg)
    close(terms.losses, losses)
    close(terms.fractions, shares, rel=1e-6)
    assert made.total(terms.losses).item() == pytest.approx(slow_total(losses), rel=1e-9)
    assert all(0.02 < value < 0.98 for value in shares.values()), shares
    # The partner's pass left the running statistics alone, the others moved them once each.
    assert student.training and all(module.training for module in student.modules())
    for (name, one), two in zip(student.state_dict().items(), slow.state_dict().values()):
        assert (one - two).abs().max() <= 1e-9, name
    assert student.backbone.bn1.num_batches_tracked.item() == 4  # two of them in `network`


@pytest.mark.parametrize('labeled', [1, 2, 3])
@pytest.mark.parametrize('method', METHODS)
def test_passes_of_a_step(method, labeled):
    student, (x, u, v) = Recorder(1), random_batch(2, 7, 9, labeled=labeled)
    made = method(config())
    made.start_step(0, 0, None)
    made(student, None, x, u, v)
    strong, copies = VIEWS[method]
    views = [(u.strong1, v.strong1, u.box1), (u.strong2, v.strong2, u.box2)][:strong]
    expected = [(v.weak, 0, False, False), (torch.cat([x.image, u.weak]), 2 * copies, True, True),
                (torch.cat([slow_paste(*view) for view in views]), 0, True, True)]
    assert len(student.calls) == 3
    for call, (images, *rest) in zip(student.calls, expected):
        assert torch.equal(call[0], images) and list(call[1:]) == rest


@pytest.mark.parametrize('method', METHODS)
def test_gradient_of_the_total(method):
    """Against finite differences: labels pass no gradient on, nor do the partner's logits."""
    cfg, (x, u, v) = config(conf_thresh=0.5), random_batch(1, 5, 6)
    student = Recorder(1)
    made = method(cfg)
    made.start_step(0, 0, None)
    made.total(made(student, None, x, u, v).losses).backward()
    fixed = slow_outputs(method, copy.deepcopy(student), x, u, v)
    weak, partner = fixed[0][1:].detach(), fixed[3]
    for i in range(1 + VIEWS[method][1]):
        weight = student.views[i].weight

        def total(moved, i=i, weight=weight):
            other = copy.deepcopy(student)
            other.views[i].weight.data = moved.view_as(weight)
            clean, fp, s, _ = slow_outputs(method, other, x, u, v)
            return slow_total(slow_terms((clean, fp, s, partner), weak, x, u, v, cfg)[0])
        expected = numeric_gradient(total, weight.detach())
        assert expected.abs().max() > 1e-3
        assert (weight.grad - expected).abs().max() <= 1e-7


@pytest.mark.parametrize('method, weights', [
    (FixMatch, {'supervised': 1 / 2, 'image1': 1 / 2}),
    (UniMatch, {'supervised': 1 / 2, 'image1': 1 / 8, 'image2': 1 / 8, 'feature': 1 / 4})])
def test_weight_of_each_term(method, weights):
    for name, weight in weights.items():
        terms = {key: torch.tensor(float(key == name)) for key in weights}
        assert method(config()).total(terms).item() == weight


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('edge', ['no label', 'all padding', 'nothing selected'])
def test_steps_with_nothing_to_learn_from(method, edge):
    student, (x, u, v) = network(1), random_batch(1, 33, 33)
    cfg = config(conf_thresh=1.0 if edge == 'nothing selected' else 0.8)
    if edge == 'no label':
        x = x._replace(label=torch.full_like(x.label, 255))
    if edge == 'all padding':
        u, v = [part._replace(valid=torch.zeros_like(part.valid)) for part in (u, v)]
    made = method(cfg)
    made.start_step(0, 0, None)
    terms = made(student, None, x, u, v)
    for name, value in terms.losses.items():
        assert (value.item() == 0) == ((name == 'supervised') == (edge == 'no label')), name
    made.total(terms.losses).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in student.parameters())


@pytest.mark.parametrize('watched', [True, False])
@pytest.mark.parametrize('labeled', [2, 3])
@pytest.mark.parametrize('method', METHODS)
def test_what_there_is_to_watch(method, labeled, watched):
    student, (x, u, v) = Recorder(1), random_batch(2, 7, 9, labeled=labeled)
    made = method(config())
    made.start_step(0, 1, None, watched)
    terms = made(student, None, x, u, v)
    clean, _, s, partner = slow_outputs(method, copy.deepcopy(student), x, u, v)
    weak = clean[labeled:].detach()
    strong, copies = VIEWS[method]
    mixed = {'image1': slow_paste(weak, partner, u.box1),
             'image2': slow_paste(weak, partner, u.box2), 'feature': weak}
    valid = {'image1': slow_paste(u.valid, v.valid, u.box1),
             'image2': slow_paste(u.valid, v.valid, u.box2), 'feature': u.valid}
    branches = ['image1', 'image2'][:strong] + ['feature'] * copies
    assert set(terms.labels) == set(branches)
    for branch in branches:
        expected = mixed[branch].argmax(1), slow_fixed(mixed[branch], 0.8), valid[branch]
        assert all(torch.equal(a, b) for a, b in zip(terms.labels[branch], expected)), branch
    views = dict([('weak', weak)] + [(f'strong{i}', z) for i, z in enumerate(s, 1)])
    assert set(terms.predictions) == (set(views) if watched else set())
    for name, found in terms.predictions.items():
        assert torch.equal(found, views[name].argmax(1)) and not found.requires_grad


@pytest.mark.parametrize('was_training', [True, False])
@pytest.mark.parametrize('wrap', [lambda net: net, lambda net: Half(net, 'cpu', torch.bfloat16)],
                         ids=['plain', 'half'])
def test_the_partners_pass_leaves_the_mode_as_it_was(wrap, was_training):
    if wrap(None) is not None and not hasattr(torch, 'autocast'):
        pytest.skip('this PyTorch has no torch.autocast')
    from dssn.methods.fixmatch import predict_partner
    student, (_, _, v) = Recorder(1).train(was_training), random_batch(1, 7, 9)
    predict_partner(wrap(student), v)
    assert student.training == was_training
    (_, _, training, grad), = student.calls
    assert not training and not grad


# ---- configuration

@pytest.mark.parametrize('name', ['fixmatch', 'unimatch'])
def test_the_strong_pool_is_dssns_alone(tmp_path, name):
    path = tmp_path / 'pascal.yaml'
    path.write_text('dataset: pascal\nnclass: 21\nnum_aug: 3\nconf_thresh: 0.9\nselection: none\n')
    assert configs.load(str(path)).num_aug == 3
    cfg = configs.load(str(path), {'method': name})
    assert (cfg.method, cfg.conf_thresh, cfg.cutmix_partner, cfg.num_aug) == (name, 0.9, 'same', 0)
    assert 'num_aug' not in configs.to_dict(cfg) and 'selection' not in configs.to_dict(cfg)
    assert configs.load(str(path), {'method': name}, ['cutmix_partner=other']).cutmix_partner == \
        'other'
    for key in ('num_aug=2', 'beta=0.9', 'lean=true', 'image_views=1'):
        with pytest.raises(configs.UserError, match=f'no effect with method {name}'):
            configs.load(str(path), {'method': name}, [key])
