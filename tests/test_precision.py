"""Arithmetic: what is set where and when, half precision in evaluation, deterministic steps."""
import copy
import os

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from commands import bench
from PIL import Image
from test_methods import CE, OHEM, config, network
from test_update import make_update, random_batches

import eval as eval_script
import train as train_script
from dssn import distributed, ema, methods, precision
from dssn.data.lists import Sample, read_list
from dssn.distributed import World
from dssn.errors import UserError
from dssn.inference import evaluation
from dssn.inference.predict import predict_folder
from dssn.methods import build
from dssn.models.deeplabv3plus import DeepLabV3Plus
from dssn.tools.bench import computed_memory, step

needs = pytest.mark.skipif
RELEASE = tuple(map(int, torch.__version__.split('.')[:2]))
OLD = not hasattr(torch, 'autocast')
CUDA, CPU = torch.device('cuda', 0), torch.device('cpu')
VARIABLE = 'CUBLAS_WORKSPACE_CONFIG'


def flags():
    return {'convolutions': torch.backends.cudnn.allow_tf32,
            'products': torch.backends.cuda.matmul.allow_tf32,
            'benchmark': torch.backends.cudnn.benchmark,
            'cudnn deterministic': torch.backends.cudnn.deterministic,
            'deterministic': torch.are_deterministic_algorithms_enabled()}


@pytest.fixture(autouse=True)
def own_arithmetic(monkeypatch):
    """Each test begins with PyTorch's defaults, and leaves the process as it was."""
    for owner, name, value in ((torch.backends.cudnn, 'allow_tf32', True),
                               (torch.backends.cuda.matmul, 'allow_tf32', PRODUCTS),
                               (torch.backends.cudnn, 'benchmark', False),
                               (torch.backends.cudnn, 'deterministic', False)):
        monkeypatch.setattr(owner, name, value)
    monkeypatch.setenv(VARIABLE, '')  # so that it is restored, whatever the test sets
    monkeypatch.delenv(VARIABLE)
    yield
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def seen():
    """[(in training mode, flags, type of the logits)] of all networks' passes."""
    passes = []

    def note(module, inputs, output):
        if isinstance(module, DeepLabV3Plus):
            logits = module.classifier.out.dtype
            passes.append((module.training, flags(), logits))
        elif isinstance(module, nn.Conv2d):
            module.out = output.detach()
    handle = torch.nn.modules.module.register_module_forward_hook(note)
    yield passes
    handle.remove()


# ---- TF32, cuDNN's search, deterministic algorithms

# Until PyTorch 1.12 matrix products were rounded to TF32 by default.
PRODUCTS = RELEASE < (1, 12)


@pytest.mark.parametrize('before', ['auto', True, False])
@pytest.mark.parametrize('tf32, convolutions, products', [
    ('auto', True, PRODUCTS), (True, True, True), (False, False, False)])
def test_tf32(before, tf32, convolutions, products):
    precision.set_arithmetic(config(tf32=before), CUDA)
    line = precision.set_arithmetic(config(tf32=tf32), CUDA)
    assert (flags()['convolutions'], flags()['products']) == (convolutions, products)
    on = {True: 'on', False: 'off'}
    assert f'TF32 in convolutions {on[convolutions]}, in matrix products {on[products]}' in line


def test_cudnn_searches_unless_runs_are_deterministic():
    for deterministic in (False, True, False):
        cfg = config(deterministic=deterministic)
        line = precision.set_arithmetic(cfg, CUDA)
        found = flags()
        assert found['benchmark'] == (not deterministic)
        assert found['cudnn deterministic'] == found['deterministic'] == deterministic
        assert ('cudnn.benchmark on' in line) == (not deterministic)
        assert ('deterministic algorithms only' in line) == deterministic


def test_the_line_for_the_log_on_a_cpu_says_what_is_true_there():
    assert precision.set_arithmetic(config(tf32=True), CPU) is None
    assert precision.set_arithmetic(config(amp='bf16'), CPU) == \
        'arithmetic: bf16 in training, float32 in evaluation'
    line = precision.set_arithmetic(config(eval_amp='bf16', deterministic=True), CPU)
    assert line == ('arithmetic: float32 in training, bf16 in evaluation; '
                    'deterministic algorithms only')


@pytest.mark.parametrize('value', [None, ':4096:8', ':16:8'])
def test_cublas_is_told_before_it_starts(monkeypatch, value):
    if value:
        monkeypatch.setenv(VARIABLE, value)
    precision.set_arithmetic(config(), CUDA)
    assert os.environ.get(VARIABLE) == value
    precision.set_arithmetic(config(deterministic=True), CUDA)
    assert os.environ[VARIABLE] == (value or ':4096:8')


@pytest.mark.parametrize('value, started, shown', [
    (None, True, 'not set'), (':0:0', False, ':0:0'), (':4096:2', True, ':4096:2')])
def test_cublas_that_was_told_otherwise_or_too_late(monkeypatch, value, started, shown):
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: started)
    if value:
        monkeypatch.setenv(VARIABLE, value)
    words = (f'deterministic = true: .*{VARIABLE} is {shown}; .*:4096:8 or :16:8.*export .*'
             'deterministic=false')
    with pytest.raises(UserError, match=words):
        precision.set_arithmetic(config(deterministic=True), CUDA)
    assert not torch.are_deterministic_algorithms_enabled()
    precision.set_arithmetic(config(deterministic=True), CPU)  # which has no cuBLAS


@pytest.fixture
def trained(tiny_world):
    """(world, path of the latest.pth) of a short run."""
    world = tiny_world(epochs=1, n_unlabeled=4)
    train_script.main(['--config', world.config_path, '--set', 'tf32=false'])
    return world, os.path.join(world.save_path, 'latest.pth')


def test_programs_tell_cublas_before_they_choose_a_gpu(tiny_world, trained, monkeypatch):
    at_start, real = [], distributed.start

    def start(*args, **kwargs):
        at_start.append(os.environ.pop(VARIABLE, None))
        raise UserError('far enough')
    monkeypatch.setattr(distributed, 'start', start)
    world, path = trained
    config_file, word = ['--config', world.config_path], ['--set', 'deterministic=true']
    for main, arguments in ((train_script.main, config_file + word),
                            (eval_script.main, ['--checkpoint', path] + word),
                            (bench, ['step'] + config_file + word),
                            (bench, ['step'] + config_file + ['--compare', word[1]]),
                            (bench, ['eval', '--images', '1'] + config_file + word)):
        try:
            main(arguments)
        except (UserError, SystemExit):
            pass
    assert at_start == [':4096:8'] * 5
    monkeypatch.setattr(distributed, 'start', real)


def test_sizes_that_vary_are_not_searched_for():
    for benchmark in (True, False):
        torch.backends.cudnn.benchmark = benchmark
        with pytest.raises(KeyError):
            with precision.varying_sizes():
                assert not torch.backends.cudnn.benchmark
                raise KeyError
        assert torch.backends.cudnn.benchmark == benchmark


@pytest.mark.parametrize('protocol, scales, flip, searches', [
    ('original', [1.0], False, False), ('center_crop', [1.0], True, True),
    ('sliding_window', [1.0], False, True), ('sliding_window', [0.5, 1.0], False, False),
    ('center_crop', [0.5], False, False)])
def test_predictors_know_whether_sizes_vary(protocol, scales, flip, searches):
    found = []

    def model(x):
        found.append(torch.backends.cudnn.benchmark)
        return x
    torch.backends.cudnn.benchmark = True
    evaluation.predictor(protocol, 9, scales, flip)(model, torch.rand(1, 3, 9, 9))
    assert set(found) == {searches} and torch.backends.cudnn.benchmark


@pytest.mark.parametrize('keys, in_training, in_evaluation', [
    ({}, True, False), ({'protocol': 'center_crop'}, True, True)])
def test_a_run_searches_in_training_and_where_images_have_one_size(tiny_world, seen, keys,
                                                                   in_training, in_evaluation):
    world = tiny_world(n_unlabeled=4, **keys)
    train_script.main(['--config', world.config_path, '--set', 'tf32=true'])
    both = dict(convolutions=True, products=True)
    expected = [(dict(both, benchmark=search), training) for training, search in
                ((True, in_training), (False, in_evaluation))]
    # The teacher is not in training mode, also in training: look at the student's passes there,
    # and at the last ones, which are the last evaluation's.
    students = [found for training, found, _ in seen if training]
    last = [found for _, found, _ in seen[-3:]]
    for passes, (words, _) in zip((students, last), expected):
        assert passes and all(found[name] == value for found in passes
                              for name, value in words.items())


def test_evaluating_a_run_uses_the_arithmetic_of_its_config(trained, seen):
    world, path = trained
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    eval_script.main(['--checkpoint', path, '--set', 'protocol=sliding_window'])
    assert seen and not any(found['convolutions'] or found['products'] for _, found, _ in seen)
    assert all(found['benchmark'] for _, found, _ in seen)


def test_folders_are_predicted_without_a_search(trained, seen, tmp_path):
    world, path = trained
    folder = os.path.join(world.root, 'images')
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    arguments = ['--checkpoint', path, '--images', folder, '--save-dir', str(tmp_path / 'out')]
    eval_script.main(arguments + ['--set', 'protocol=sliding_window'])
    assert seen and not any(found['convolutions'] or found['benchmark'] for _, found, _ in seen)


def test_a_run_goes_on_with_its_arithmetic_alone(trained):
    world, _ = trained
    with pytest.raises(UserError, match='tf32 was False, is True'):
        train_script.main(['--config', world.config_path, '--set', 'tf32=true', 'epochs=2'])


def test_steps_that_are_compared_have_their_own_arithmetic(tiny_world, seen):
    benches = [step.StepBench(tiny_world().load(batch_size=2, tf32=tf32), World())
               for tf32 in (True, False)]
    for timed, tf32 in zip(benches, (True, False)):
        for turn in (timed.step, timed.floor):
            del seen[:]
            turn()
            assert seen and {found['products'] for _, found, _ in seen} == {tf32}


# ---- half precision in evaluation

class Halved(nn.Module):
    """A convolution whose logits are in whatever precision it computed in."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.types, self.logits = nn.Conv2d(3, 3, 3, padding=1), [], []

    def forward(self, x):
        out = self.conv(x)
        self.types.append(out.dtype)
        self.logits.append(out)
        return out


@needs(OLD, reason='this PyTorch has no torch.autocast')
@pytest.mark.parametrize('keys', [{}, {'protocol': 'sliding_window', 'crop_size': 32}], ids=str)
def test_evaluation_in_bf16_decides_in_float32(tiny_world, monkeypatch, keys):
    cfg = tiny_world().load(eval_amp='bf16', **keys)
    samples, model, decided = read_list(cfg.val_id_path), Halved(), []
    real = evaluation.classes
    monkeypatch.setattr(evaluation, 'classes', lambda x: decided.append(x) or real(x))
    result = evaluation.evaluate({'s': model}, cfg, samples, World())
    assert set(model.types) == {torch.bfloat16}
    assert {x.dtype for x in decided} == {torch.float32}
    if not keys:
        assert all(torch.equal(x, out.float()) for x, out in zip(decided, model.logits))
    else:  # sums of softmaxes that were computed in float32: each pixel's are whole numbers
        total = decided[0].sum(1)
        assert (total - total.round()).abs().max() < 1e-5
    assert not model.types.clear()
    plain = evaluation.evaluate({'s': model}, tiny_world().load(**keys), samples, World())
    assert set(model.types) == {torch.float32}
    assert result['s'].miou == pytest.approx(plain['s'].miou, abs=5)


@needs(OLD, reason='this PyTorch has no torch.autocast')
def test_a_run_evaluates_in_half_precision_and_trains_in_full(tiny_world, seen):
    world = tiny_world(n_unlabeled=4, epochs=1)
    train_script.main(['--config', world.config_path, '--set', 'eval_amp=bf16'])
    assert {kind for training, _, kind in seen if training} == {torch.float32}
    assert [kind for *_, kind in seen[-6:]] == [torch.bfloat16] * 6  # 3 images, two networks


@needs(OLD, reason='this PyTorch has no torch.autocast')
def test_eval_obeys_eval_amp(trained, seen, tmp_path, capsys):
    world, path = trained
    half = ['--checkpoint', path, '--set', 'eval_amp=bf16']
    folder = ['--images', os.path.join(world.root, 'images'), '--save-dir', str(tmp_path / 'out')]
    for arguments in (half, half + folder):
        del seen[:]
        eval_script.main(arguments)
        assert seen and {kind for *_, kind in seen} == {torch.bfloat16}
        assert 'bf16 in evaluation' in capsys.readouterr().out
    with pytest.raises(UserError, match='eval_amp = fp16 needs a GPU; use bf16 or off'):
        eval_script.main(['--checkpoint', path, '--set', 'eval_amp=fp16'])


@needs(OLD, reason='this PyTorch has no torch.autocast')
def test_a_folder_is_predicted_by_a_network_in_half_precision(tmp_path):
    Image.new('RGB', (12, 9), (10, 200, 90)).save(str(tmp_path / 'x.png'))
    model = Halved().train()
    half = precision.half_in_evaluation(model, config(eval_amp='bf16'), CPU)
    predict_folder(half, str(tmp_path), [Sample('x.png', None, '')], World(), lambda *_: None,
                   evaluation.predictor('original', 9))
    assert model.types == [torch.bfloat16] and not model.training


# ---- what is refused

@pytest.mark.parametrize('which', [precision.check, precision.check_evaluation])
def test_half_precision_in_evaluation_needs_autocast(monkeypatch, which):
    monkeypatch.delattr(torch, 'autocast', raising=False)
    with pytest.raises(UserError, match='eval_amp = bf16 needs PyTorch 1.10'):
        which(config(eval_amp='bf16'), CPU)
    which(config(), CPU)


def test_evaluation_does_not_ask_for_what_training_needs(monkeypatch):
    monkeypatch.delattr(torch, 'autocast', raising=False)
    precision.check_evaluation(config(amp='fp16', compile=True, checkpoint_backbone=True), CPU)


@pytest.mark.parametrize('version, refused', [
    ('1.8.1', True), ('2.0.0', True), ('2.13.1', True), ('2.14.1+cu130', False), ('3.0', False)])
@pytest.mark.parametrize('which', [precision.check, precision.check_evaluation])
def test_deterministic_runs_need_a_release_that_has_all_operations(monkeypatch, which, version,
                                                                   refused):
    monkeypatch.setattr(torch, '__version__', version)
    which(config(), CPU)
    if not refused:
        which(config(deterministic=True), CPU)
        return
    with pytest.raises(UserError, match='deterministic = true needs PyTorch 2.14 or newer, this is '
                                        f'{version}: .*lack deterministic .*deterministic=false'):
        which(config(deterministic=True), CPU)


# ---- a step has no operation that CUDA refuses where only deterministic ones are allowed

def of_floats(args):
    return args[0].is_floating_point()


# Operations whose CUDA version raises under torch.use_deterministic_algorithms(True), in PyTorch
# 2.14 or, as kthvalue, in releases before it: {name: when, by its arguments}.
REFUSED = {name: lambda args: True for name in (
    'kthvalue', 'median', 'nanmedian', 'histc', 'put', 'scatter_reduce', 'index_reduce',
    '_adaptive_avg_pool2d_backward', '_adaptive_avg_pool3d_backward', 'avg_pool3d_backward',
    'adaptive_max_pool2d_backward', 'fractional_max_pool2d_backward',
    'fractional_max_pool3d_backward', 'max_pool3d_with_indices_backward', 'max_unpool2d',
    'max_unpool3d', 'grid_sampler_2d_backward', 'grid_sampler_3d_backward', '_ctc_loss_backward',
    'reflection_pad1d_backward', 'reflection_pad2d_backward', 'reflection_pad3d_backward',
    'replication_pad1d_backward', 'replication_pad2d_backward', 'replication_pad3d_backward',
    'upsample_linear1d_backward', 'upsample_bilinear2d_backward', 'upsample_bicubic2d_backward',
    'upsample_trilinear3d_backward', '_upsample_bilinear2d_aa_backward',
    '_upsample_bicubic2d_aa_backward')}
REFUSED.update(
    cumsum=of_floats, cumprod=of_floats,
    nll_loss2d_forward=lambda args: args[3] != 0,  # 0: reduction='none'
    bincount=lambda args: len(args) > 1 and args[1] is not None)


class Refused(computed_memory.TorchDispatchMode):
    """While active, collects the names of operations that CUDA would refuse."""

    def __init__(self):
        super().__init__()
        self.names, self.count = set(), 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation._schema.name.split('::')[1]
        name = name[:-1] if name.endswith('_') else name
        self.count += 1
        if name in REFUSED and REFUSED[name](args):
            self.names.add(name)
        return operation(*args, **(kwargs or {}))


current = needs(RELEASE < precision.DETERMINISTIC_SINCE, reason='an older PyTorch refuses the key')
LOGITS, LABEL = torch.randn(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)


@current
@pytest.mark.parametrize('name, work', [
    ('nll_loss2d_forward', lambda x: F.cross_entropy(x, LABEL, reduction='sum')),
    ('nll_loss2d_forward', lambda x: F.cross_entropy(x, LABEL)),
    (None, lambda x: F.cross_entropy(x, LABEL, reduction='none')),
    ('upsample_bilinear2d_backward', lambda x: F.interpolate(x, (7, 7), mode='bilinear')),
    ('_adaptive_avg_pool2d_backward', lambda x: F.adaptive_avg_pool2d(x, 2)),
    (None, lambda x: F.adaptive_avg_pool2d(x, 1)),
    ('kthvalue', lambda x: x.flatten().kthvalue(3).values),
    ('median', lambda x: x.median(1).values), ('histc', lambda x: x * x.detach().histc(4)),
    ('cumsum', lambda x: x.cumsum(1)), (None, lambda x: x * LABEL.cumsum(1)),
    ('bincount', lambda x: x * LABEL.flatten().bincount(torch.ones(16), minlength=4)),
    (None, lambda x: x * LABEL.flatten().bincount(minlength=4)),
    ('put', lambda x: x.clone().put_(torch.tensor([0]), torch.ones(1))),
])
def test_the_guard_sees_what_cuda_refuses(name, work):
    with Refused() as guard:
        work(LOGITS.clone().requires_grad_()).sum().backward()
    assert guard.names == ({name} if name else set())


@current
@pytest.mark.parametrize('keys', [
    {}, {'selection': 'class_topk', 'criterion': OHEM}, {'selection': 'fixed'},
    {'selection': 'none', 'lean': True}, {'feature_labels': 'teacher', 'accumulate': 2},
    {'image_views': 0}, {'feature_views': 0}, {'backbone': 'resnet50', 'stem': 'plain'},
    pytest.param({'backbone': 'xception', 'base_channels': 64, 'checkpoint_backbone': True},
                 marks=pytest.mark.slow),
    {'model': 'dpt', 'backbone': 'dinov2_tiny', 'crop_size': 42},  # its positions are resized
    {'method': 'fixmatch', 'criterion': OHEM}, {'method': 'unimatch'}, {'method': 'unimatch_v2'},
    {'method': 'supervised', 'criterion': OHEM}, {'method': 'supervised'}], ids=str)
def test_a_step_is_allowed_where_only_deterministic_operations_are(tmp_path, keys):
    # Tensors without contents take the ways of a GPU's: in interpolation and in OHEM.
    known = vars(config(**dict(dict(batch_size=2, crop_size=33, dataset='x', deterministic=True,
                                    save_path=str(tmp_path)), **keys)))
    kind = methods.find(known['method'], 'here').Config
    cfg = kind(**{name: known[name] for name in kind.__dataclass_fields__ if name in known})
    timed = computed_memory.MetaStepBench(cfg, World(device='meta'))
    with Refused() as guard:
        timed.step()
    assert guard.names == set() and guard.count > 400


@current
@pytest.mark.parametrize('keys', [{}, {'amp': 'bf16'}, {'on_nonfinite': 'skip'}], ids=str)
def test_a_whole_update_too_optimizer_included(keys):
    # On a CPU, where interpolation and the k-th smallest have ways of their own.
    cfg = config(batch_size=2, criterion=OHEM, **keys)
    student = network(1)
    make = make_update(build(cfg), cfg, student, ema.make_teacher(network(2)))
    before = copy.deepcopy(student.state_dict())
    with Refused() as guard:
        make(random_batches(2), 1, 9)
    assert guard.names <= {'upsample_bilinear2d_backward', 'kthvalue'}
    assert not torch.equal(before['classifier.weight'], student.classifier.weight)


@current
@pytest.mark.parametrize('keys', [{}, {'protocol': 'sliding_window'}], ids=str)
def test_an_evaluation_too(tiny_world, keys):
    cfg = tiny_world(criterion=CE, **keys).load()
    predict = evaluation.predictor(cfg.protocol, cfg.crop_size, [0.5, 1.0], True)
    with Refused() as guard:
        for how in (None, predict):
            evaluation.evaluate({'s': network(1).float()}, cfg, read_list(cfg.val_id_path),
                                World(), predict=how)
    assert guard.names == set() and guard.count > 100


@current
def test_a_deterministic_run_on_a_cpu(tiny_world, seen, capsys):
    world = tiny_world(n_unlabeled=4, epochs=1)
    train_script.main(['--config', world.config_path, '--set', 'deterministic=true'])
    assert 'deterministic algorithms only' in capsys.readouterr().out
    assert seen and all(found['deterministic'] and not found['benchmark'] for _, found, _ in seen)
