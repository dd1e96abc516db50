"""The config keys: each is declared once, with its type, default, help, legal values and effect.

A method declares its own keys beside the method (`dssn/methods/*.py`) in a subclass of `Config`.
"""
import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Dict, List

from dssn.errors import UserError
from dssn.mixing import BOX_RATIO


def key(default, help, choices=None, low=None, high=None, above=None, below=None, length=None,
        ordered=None, word=None, effect='result', weights=True, in_experiments=True):
    """Declare a config key: its default, one line of help, its legal values and its effect.

    Args:
        choices, low, high, above, below: limits of the value, or of each entry of a list.
        length: number of entries of a list. ordered: no entry may be smaller than the one before.
        word: a word that is legal in place of a value of the key's type.
        effect: 'result': the key affects the result. 'fact': it does, too, but reports show it in
            its own place (data set, method, lists, ...). 'none': it does not affect the result, so
            a run can be resumed with another value, and reports do not compare it.
        weights: whether the key affects the weights. If not, it affects evaluations alone, so a run
            can be resumed with another value; its scores may then not be comparable.
        in_experiments: whether the `set` of an experiment file may have the key. Others are set by
            the experiment's grid.
    """
    limits = dict(choices=choices, low=low, high=high, above=above, below=below, length=length,
                  ordered=ordered, word=word)
    metadata = {'help': help, 'effect': effect, 'weights': weights,
                'in_experiments': in_experiments,
                **{k: v for k, v in limits.items() if v is not None}}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def criterion_default():
    return {'name': 'CELoss', 'kwargs': {'ignore_index': 255}}


@dataclass(frozen=True)
class Config:
    """The keys of every method. `load` makes instances, complete and checked."""
    # the experiment
    method: str = key('DSSN', 'training method: the name of a class in dssn/methods', effect='fact')
    seed: int = key(0, 'seed of all random numbers', low=0, effect='fact', in_experiments=False)
    device: str = key('auto', 'device to compute on; auto: a GPU if there is one',
                      choices=('auto', 'cpu', 'cuda'), effect='none')
    # data
    dataset: str = key('', 'name of the data set; selects palette, class names and defaults',
                       effect='fact', in_experiments=False)
    nclass: int = key(0, 'number of classes; may be left out if `classes` is set', low=2,
                      high=255)
    classes: List[str] = key([], 'class names in index order, or a text file with one name per '
                                 'line; empty: the names known for the data set, else "class 0", '
                                 '...')
    colours: List[List[int]] = key([], 'colours of the classes in pictures, [red, green, blue] '
                                       "(0..255) each; empty: the data set's, or generated colours",
                                   effect='none')
    ignore_index: int = key(255, 'value in masks for pixels without a class; they are ignored, and '
                                 'so are pixels with value 255', low=0, high=255)
    palette: str = key('check', 'palettes of masks: check that each index has one colour in all '
                                'masks of a list, or ignore colours, because the indices are right',
                       choices=('check', 'ignore'), effect='none')
    data_root: str = key('', 'folder that paths in the id lists are relative to', effect='none')
    labeled_id_path: str = key('', 'id list with images and masks', effect='fact')
    unlabeled_id_path: str = key('', 'id list of images without masks', effect='fact')
    val_id_path: str = key('', 'id list to evaluate on; empty: splits/<dataset>/val.txt',
                           effect='fact', weights=False)
    allow_outside: bool = key(False, 'allow id lists to name files outside data_root, by `..` or '
                                     'an absolute path; links in data_root are always followed',
                              effect='none')
    skip_check: bool = key(False, 'do not check the data before training: that all files exist, '
                                  'that val has no training image, and a few masks', effect='none')
    save_path: str = key('', "the run's folder", effect='none', in_experiments=False)
    workers: int = key('auto', 'loader processes per training process; 0: the training process '
                               'loads; auto: on a GPU the CPU cores of a training process minus '
                               'one, 1 to 8; on a CPU 1, or 0 if there is one core', low=0,
                       word='auto', effect='none')
    max_bad_samples: int = key(10, 'largest number of unreadable unlabeled files, per process; '
                                   'each is logged and replaced by the next file of the list; one '
                                   'more stops the run; 0: the first stops it; of the labeled '
                                   'files none may be bad', low=0, effect='none')
    crop_size: int = key(321, 'side of the square training crop, pixels; model: dpt: a multiple of '
                              '14', low=17)
    scale_range: List[float] = key([0.5, 2.0], 'smallest and largest factor of the random resize '
                                               'before the crop, of labeled and unlabeled images',
                                   length=2, ordered=True, above=0, high=10)
    # network
    model: str = key('deeplabv3plus', 'segmentation network', choices=('deeplabv3plus', 'dpt'))
    backbone: str = key('resnet101', 'backbone of the network; model: dpt: one of the dinov2_*',
                        choices=('resnet10', 'resnet18', 'resnet50', 'resnet101', 'xception',
                                 'dinov2_tiny', 'dinov2_small', 'dinov2_base', 'dinov2_large'))
    lock_backbone: bool = key(False, 'model: dpt: leave the backbone as it is; train the head '
                                     'alone')
    stem: str = key('deep', "deep: three 3x3 convolutions; plain: torchvision's 7x7",
                    choices=('deep', 'plain'))
    replace_stride_with_dilation: List[bool] = key(
        [False, False, True], "dilate ResNet's layer2, layer3, layer4 instead of striding",
        length=3)
    dilations: List[int] = key([6, 12, 18], 'dilations of the ASPP head', length=3, low=1)
    multi_grid: bool = key(False, 'must be false; only old config files have this key',
                           choices=(False,))
    decoder_channels: int = key(256, 'width of the decoder', low=1)
    base_channels: int = key(64, 'width of the first ResNet stage', low=2)
    pretrained: bool = key(False, 'start the backbone from pretrained/<backbone>.pth')
    init_from: str = key('', 'checkpoint with the initial weights of the network')
    # optimisation
    epochs: int = key(100, 'number of epochs; epoch_steps is their length', low=1)
    epoch_steps: int = key(0, 'optimizer steps per epoch; 0: one pass over the unlabeled list '
                              '(supervised: over the labeled list). With unlabeled images at most '
                              'one pass; each epoch then samples a part of the unlabeled list. The '
                              'labeled list is repeated as needed', low=0)
    batch_size: int = key(2, 'unlabeled images per step and process; also the number of labeled '
                             'images, unless labeled_batch_size is set', low=1)
    labeled_batch_size: int = key(0, 'labeled images per step and process; 0: batch_size', low=0)
    lr: float = key(0.002, 'initial learning rate of the backbone', above=0)
    lr_multi: float = key(10.0, 'factor on lr for parameters outside the backbone', above=0)
    lr_power: float = key(0.9, 'power of the polynomial decay of the learning rate: lr * (1 - '
                               'step / steps) ** lr_power; 0: constant, 1: linear', low=0, high=10)
    optimizer: str = key('sgd', 'optimizer: SGD, or AdamW (the default with model: dpt)',
                         choices=('sgd', 'adamw'))
    momentum: float = key(0.9, 'momentum of SGD', low=0, below=1)
    betas: List[float] = key([0.9, 0.999], 'AdamW: fractions of the averages of gradients and of '
                                           'their squares that are kept at each step', length=2,
                             low=0, below=1)
    eps: float = key(1e-8, "AdamW: added to the root of the squares' average", above=0, high=1)
    weight_decay: float = key(1e-4, 'weight decay, on all parameters; optimizer: adamw: 0.01 '
                                    'unless set', low=0, high=1)
    criterion: Dict[str, Any] = dataclasses.field(
        default_factory=criterion_default,
        metadata={'help': 'labeled loss: {name: CELoss} or '
                          '{name: OHEM, kwargs: {thresh, min_kept}}'})
    reference_batch: int = key(0, 'labeled images in the global batch that lr is meant for; 0: '
                                  'unknown', low=0)
    scale_lr: bool = key(False, 'multiply lr by (labeled images in the global batch / '
                                'reference_batch)')
    on_nonfinite: str = key('stop', 'if a loss or gradient is not finite: stop the run, or skip '
                                    'the step', choices=('stop', 'skip'), effect='none')
    max_skips: int = key(20, 'largest number of skipped steps (on_nonfinite: skip); one more stops '
                             'the run', low=1, effect='none')
    # speed and memory
    accumulate: int = key(1, 'number of parts that a batch is split into, to save memory; must '
                             'divide batch_size and labeled_batch_size', low=1)
    checkpoint_backbone: bool = key(False, "save memory: recompute the backbone's activations "
                                           'in the backward pass instead of keeping them',
                                    effect='none')
    channels_last: bool = key(False, 'use the channels-last memory format for the networks')
    amp: str = key('off', 'half precision in training: bf16, or fp16 (GPU only)',
                   choices=('off', 'bf16', 'fp16'))
    eval_amp: str = key('off', 'half precision in evaluation and prediction: bf16, or fp16 (GPU '
                               'only)', choices=('off', 'bf16', 'fp16'), weights=False)
    tf32: bool = key('auto', 'let GPUs (Ampere and newer) compute float32 products in TF32; true: '
                             "in convolutions and matrix products; auto: PyTorch's default, in "
                             'convolutions only (both before 1.12)', word='auto')
    deterministic: bool = key(False, 'on one GPU the same command gives the same result, bit for '
                                     'bit; slower; sums over several GPUs may still differ')
    compile: bool = key(False, 'compile the networks with torch.compile')
    # evaluation and the log
    protocol: str = key('original', 'evaluation on whole images (original), by a window of size '
                                    'crop_size, or on the central crop_size x crop_size only',
                        choices=('original', 'sliding_window', 'center_crop'), effect='fact',
                        weights=False)
    eval_batch_size: int = key(4, 'images of equal size that a GPU evaluates at once; a CPU '
                                  'evaluates one at a time', low=1, effect='none')
    select_on: str = key('', 'id list, separate from the others, on which mIoU selects the best '
                             'weights; their reported mIoU is that on val; empty: select on val',
                         effect='fact', weights=False)
    eval_every: int = key(1, 'epochs between evaluations; the last epoch is always evaluated',
                          low=1, weights=False)
    save_every: str = key('15 min', 'steps (such as 500) or minutes (such as 30 min) between saves '
                                    'of latest.pth; it is also saved after each epoch; 0: only '
                                    'then',
                          effect='none')
    log_every: int = key(50, 'steps between lines of the log', low=1, effect='none')
    panel_every: int = key(1000, 'steps between panels (views, pseudo-labels, predictions) in '
                                 'TensorBoard; also after the last step; 0: none', low=0,
                           effect='none')
    panel_images: int = key(4, 'largest number of images in a panel', low=1, effect='none')

    # Whether the method takes unlabeled images.
    takes_unlabeled = True
    # Lines for the log on how the config was read.
    notes = ()

    @property
    def labeled_images(self):
        """Labeled images of a step, per process."""
        return self.labeled_batch_size or self.batch_size

    @property
    def unlabeled_images(self):
        """Unlabeled images of a step, per process; 0 if the method takes none."""
        return self.batch_size if self.takes_unlabeled else 0

    @property
    def most_parts(self):
        """The largest legal value of `accumulate`: it divides the images of both kinds."""
        return math.gcd(self.labeled_images, self.unlabeled_images)

    @property
    def list_paths(self):
        """{role: id list} of the lists that are named: labeled, unlabeled, val, select_on."""
        paths = {'labeled': self.labeled_id_path, 'unlabeled': self.unlabeled_id_path,
                 'val': self.val_id_path, 'select_on': self.select_on}
        return {role: path for role, path in paths.items() if path}

    @classmethod
    def keys(cls, effect):
        """Names of the keys with an effect: 'result', 'fact' or 'none', see `key`."""
        return [field.name for field in dataclasses.fields(cls)
                if field.metadata.get('effect', 'result') == effect]

    @classmethod
    def evaluation_keys(cls):
        """Names of the keys that affect evaluations, but not the weights."""
        return [field.name for field in dataclasses.fields(cls)
                if not field.metadata.get('weights', True)]

    def check(self, place):
        """Raise a UserError if keys contradict each other. Methods override it for their own keys.

        Args:
            place: the origin of the config, for the message.
        """


@dataclass(frozen=True)
class ViewsConfig(Config):
    """The keys of all that trains on strong views."""
    # No keys but constants. Only DSSN uses the strong pool; `PartnerConfig` has the choice of
    # partners. Both have keys of these names.
    num_aug, flag_use_random_num_sampling, cutmix_partner = 0, True, 'batch'
    jitter_probability: float = key(0.8, 'strong views: probability of colour jitter', low=0,
                                    high=1)
    jitter_strength: float = key(0.5, 'colour jitter: brightness, contrast and saturation are '
                                      'multiplied by factors uniform in 1 - jitter_strength to 1 + '
                                      'jitter_strength', low=0, high=1)
    jitter_hue: float = key(0.25, 'colour jitter: the hue shifts by up to this fraction of the '
                                  'circle, in both directions', low=0, high=0.5)
    grayscale_probability: float = key(0.2, 'strong views: probability of grayscale', low=0, high=1)
    blur_probability: float = key(0.5, 'strong views: probability of Gaussian blur', low=0, high=1)
    blur_sigma: List[float] = key([0.1, 2.0], 'smallest and largest sigma of this blur, pixels',
                                  length=2, ordered=True, low=0, high=100)
    cutmix_probability: float = key(0.5, 'probability that a strong view has a CutMix box', low=0,
                                    high=1)
    # Larger boxes hardly ever fit into the crop.
    cutmix_area: List[float] = key([0.02, 0.4], 'smallest and largest area of a CutMix box, as a '
                                                'fraction of the crop', length=2, ordered=True,
                                   above=0, high=0.8)
    labeled_weight: float = key(0.5, 'weight of the labeled loss; 0.5 as published, 1 as in '
                                     'supervised training', above=0)

    def check(self, place):
        smallest = 1 / (BOX_RATIO[0] * self.crop_size ** 2)
        if self.cutmix_area[0] < smallest:
            raise UserError(f'{place}: cutmix_area = {self.cutmix_area}: boxes of '
                            f'{self.cutmix_area[0]:g} of a crop of {self.crop_size} pixels would '
                            'have sides below 1 pixel; set a smallest area of at least '
                            f'{math.ceil(smallest * 1e4) / 1e4:g}')


@dataclass(frozen=True)
class PartnerConfig(ViewsConfig):
    """The key of all that can choose the image from which CutMix pastes."""
    cutmix_partner: str = key('other', 'image from which CutMix pastes: the same image, augmented '
                                       'a second time; another image; or batch: that of the '
                                       'reversed order in the same batch (the default with model: '
                                       'dpt)', choices=('same', 'other', 'batch'))


@dataclass(frozen=True)
class TeacherConfig(Config):
    """The key of all that has a teacher."""
    beta: float = key(0.996, "EMA's alpha: fraction of the teacher's weights that is kept at each "
                             'step', low=0, below=1)


@dataclass(frozen=True)
class PseudoLabelsConfig(ViewsConfig):
    """The keys of methods that train on strong views with pseudo-labels."""
    watch_truth: bool = key(False, 'with each panel, compare pseudo-labels with the masks that the '
                                   'unlabeled list names, if any; masks are never trained on',
                            effect='none')
    conf_thresh: float = key(0.95, 'lowest confidence of a selected pseudo-label (DSSN: only with '
                                   'selection: fixed)', low=0, high=1)


@dataclass(frozen=True)
class StrongViewsConfig(PartnerConfig, PseudoLabelsConfig):
    """The keys of methods that train on strong views of unlabeled images."""


@dataclass(frozen=True)
class FeatureViewsConfig(StrongViewsConfig):
    """The keys of methods that also train on perturbed copies of features."""
    feature_dropout: float = key(0.5, 'probability that a channel of the features is dropped in a '
                                      'perturbed copy', low=0, below=1)
