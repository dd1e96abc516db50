"""Evaluate a checkpoint on an id list, or predict images that have no masks.

    python eval.py --checkpoint exp/shapes/DSSN/resnet18/20/best.pth
    python eval.py --config configs/pascal.yaml --checkpoint published.pth --weights teacher \\
        --json scores.json --save-dir pictures
    python eval.py --checkpoint latest.pth --weights both --scales 0.75 1 1.25 --flip
    python eval.py --checkpoint best.pth --images photos --save-dir predictions
    python eval.py --checkpoint best.pth --images a.jpg 'more/*.png' --save-dir predictions
    python eval.py --checkpoint best.pth --images photos --save-dir predictions --export labelme

Checkpoints of this project contain their config; for others give --config. With several processes
(torchrun, srun) each image is still counted once. With --scales or --flip the probabilities of
scaled and mirrored copies of an image are averaged.

--save-dir D writes D/index.html, a gallery for a browser, and folders with pictures: the predicted
class indices in the class colours, overlays, and with masks also error maps and panels.

--images takes files, folders with their subfolders, and patterns. It reads every format that Pillow
reads. In folders, files with other endings, names that begin with a dot, and --save-dir are
skipped. Images are rotated by EXIF, transparency is ignored, and only the
first frame of an animation is predicted. A video that is named, or matches a
pattern, stands for its frames (needs PyAV: pip install av). Images that cannot be read, or have
more than 8 bits a channel, are named at the end, and the exit status is then 1. Images that an
earlier call with the same network and options has predicted are skipped.

Images of up to 2048 x 2048 pixels are predicted by the protocol of the config (`center_crop`: as
whole images). Larger images are predicted in overlapping tiles, which are blended: --tile and
--overlap set their size. Large TIFF files are read in parts, and geo-referenced ones keep their
coordinates, if rasterio is installed (pip install rasterio).

--export also writes the predictions as polygons for an annotation tool, into D/labelme,
D/cvat/annotations.xml or D/coco/instances.json. `python -m dssn masks` makes masks of the corrected
files.
"""
import argparse
import copy
import json
import os
import sys
import time

from dssn.data.classes import colours_of_classes, names_of_classes
from dssn.errors import UserError, escape_output, status_without_reader
from dssn.inference.annotations import FORMATS
from dssn.models.weights import (
    checksum,
    choose_weights,
    load_weights,
    network_weights,
    read_torch_file,
    roles_held,
)
from dssn.tools.arguments import between, number, positive_number, whole_number
from dssn.tools.experiments import oracles  # noqa: F401, registers its methods


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--checkpoint', required=True)
    parser.add_argument('--config', help='YAML file (default: the config in the checkpoint)')
    parser.add_argument('--weights', choices=('student', 'teacher', 'both'),
                        help='network to evaluate, if the file has both (default: student)')
    parser.add_argument('--id-path',
                        help='id list to evaluate on (default: the val list of the config)')
    parser.add_argument('--absent', choices=('skip', 'zero'),
                        help='rule for a class in neither ground truth nor prediction: skip it in '
                             'the mean, or count it as 0 as in published means (default: skip)')
    parser.add_argument('--scales', nargs='+', type=scale_factor, default=[1.0], metavar='FACTOR',
                        help='predict copies of each image scaled by these (default: 1)')
    parser.add_argument('--flip', action='store_true',
                        help='also predict copies mirrored left to right')
    parser.add_argument('--json', help='write the scores to this file')
    parser.add_argument('--save-dir', help='folder for pictures and their gallery, index.html')
    parser.add_argument('--images', nargs='+', metavar='PATH',
                        help="predict these images: files, folders, or patterns such as '*.jpg'; "
                             'needs --save-dir')
    add_prediction_arguments(parser.add_argument_group('prediction, with --images'))
    parser.add_argument('--set', nargs='+', action='extend', default=[], metavar='KEY=VALUE',
                        dest='assignments', help='override config keys')
    parser.add_argument('--port', type=int, help='port of rank 0, if the launcher sets none')
    parser.add_argument('--local_rank', '--local-rank', type=int,
                        help='set by some launchers; not for users')
    args = parser.parse_args(argv)
    if args.images and not args.save_dir:
        parser.error('--images needs --save-dir, the folder for the predictions')
    check_prediction_arguments(parser, args)
    if args.weights == 'both' and args.save_dir:
        parser.error('--save-dir needs one network: give --weights student or teacher')
    for flag in ('id_path', 'absent', 'json'):
        if args.images and getattr(args, flag):
            parser.error(f"--images has no ground truth: leave --{flag.replace('_', '-')} out")
    return args


def add_prediction_arguments(group):
    """Add the options that only --images has."""
    group.add_argument('--tile', type=positive_number, metavar='N',
                       help='predict images with more than N x N pixels in tiles of N x N pixels '
                            '(default: 2048); small tiles need less memory')
    group.add_argument('--overlap', type=whole_number, metavar='M',
                       help='pixels that neighbouring tiles share at least; at most half of --tile '
                            '(default: a quarter)')
    group.add_argument('--confidence', nargs='?', const='uint8', choices=('uint8', 'uint16'),
                       help='also write the probability of the predicted class of each pixel as '
                            'PNG, with 8 (default) or 16 bits')
    group.add_argument('--probabilities', nargs='?', const='uint8', choices=('uint8', 'uint16'),
                       help='also write the probabilities of all classes, as .npz')
    group.add_argument('--export', choices=FORMATS,
                       help='also write the predictions as polygons for this annotation tool')
    group.add_argument('--tolerance', type=between(0, 1000), metavar='PIXELS',
                       help='of --export: largest distance of a polygon from the border of its '
                            'pixels (default: 0.5); above 0.35 pixels at borders may change')
    group.add_argument('--min-area', type=whole_number, metavar='PIXELS',
                       help='of --export: a region of fewer pixels joins its largest neighbour '
                            '(default: 10)')
    group.add_argument('--min-confidence', type=between(0, 1), metavar='FRACTION',
                       help='of --export: only where the predicted class has at least this '
                            'probability (default: 0, everywhere)')
    group.add_argument('--every', type=positive_number, metavar='N',
                       help='of a video, predict every N-th frame (default: 1)')


def check_prediction_arguments(parser, args):
    """End with an error if the options of --images do not fit together."""
    for flag in ('tile', 'overlap', 'confidence', 'probabilities', 'every', 'export'):
        if not args.images and getattr(args, flag) is not None:
            parser.error(f'--{flag} is an option of --images; add --images, or leave it out')
    for flag in ('tolerance', 'min_area', 'min_confidence'):
        if not args.export and getattr(args, flag) is not None:
            parser.error(f"--{flag.replace('_', '-')} is an option of --export; add --export, or "
                         'leave it out')
    if args.overlap is not None and 2 * args.overlap > tiling(args).tile:
        parser.error(f'--overlap {args.overlap} must be at most half of --tile '
                     f'({tiling(args).tile})')


def tiling(args):
    """The `Tiling` of --tile and --overlap."""
    from dssn.inference.tiles import DEFAULT, Tiling
    tile = args.tile or DEFAULT.tile
    return Tiling(tile, tile // 4 if args.overlap is None else args.overlap)


def export_options(args):
    """The `ExportOptions` of --export and its options."""
    from dssn.inference.annotations import ExportOptions
    return ExportOptions(args.export, 0.5 if args.tolerance is None else args.tolerance,
                         10 if args.min_area is None else args.min_area,
                         args.min_confidence or 0.0)


def scale_factor(text):
    """A factor of --scales, float."""
    try:
        value = number(text, float)
    except ValueError:
        value = 0
    if not 0 < value <= 8:
        raise argparse.ArgumentTypeError(f"'{text}' must be a number above 0 and at most 8")
    return value


def main(argv=None):
    escape_output()
    args = parse_arguments(argv)
    content = read_torch_file(args.checkpoint)
    from dssn.inference.network import read_config
    cfg = read_config(content, args.checkpoint, args.config, {'val_id_path': args.id_path},
                      args.assignments)

    from dssn import distributed, precision
    from dssn.data.check.quick import some_bands_problems
    from dssn.data.lists import check_files, read_list
    from dssn.inference.evaluation import predictor
    from dssn.models import build_model
    network = build_model(cfg)
    states = choose_states(args, content, network.state_dict())
    if args.images:
        from dssn.inference.predict import find_images
        root, samples, notes = find_images(args.images, args.save_dir, args.every or 1)
        path = '--images'
    else:
        samples = read_list(cfg.val_id_path, True, cfg.allow_outside)
        check_files(samples, cfg.data_root)
        root, path, notes = cfg.data_root, cfg.val_id_path, []
    notes += [f'warning: {problem.message}'
              for problem in some_bands_problems(root, 'val', path, samples)]
    models = {role: copy.deepcopy(network) for role in states}
    for role, model in models.items():
        load_weights(model, states[role], args.checkpoint)
    del content, network, states  # copies of the weights; a large image needs the memory
    predict_indices = predictor(cfg.protocol, cfg.crop_size, args.scales, args.flip)
    precision.prepare(cfg)
    with distributed.start(cfg.device, args.local_rank, args.port) as world:
        precision.check_evaluation(cfg, world.device)
        line = precision.set_arithmetic(cfg, world.device)
        if line and world.is_main:
            print(line)
        for model in models.values():
            model.to(world.device)
        if args.images:
            return predict(args, cfg, models, predict_indices, root, samples, notes, world)
        for note in notes if world.is_main else []:
            print(f'eval.py: {note}', file=sys.stderr)
        return evaluate_list(args, cfg, models, predict_indices, samples, world)


def choose_states(args, content, names):
    """{role: state dict} of the networks that --weights selects; `names`: of their tensors.

    Raises:
        UserError: the checkpoint does not contain them.
    """
    if args.weights != 'both':
        state, role = choose_weights(content, args.checkpoint, names, args.weights)
        return {role: state}
    held = roles_held(content, args.checkpoint, names)
    if len(held) < 2:
        raise UserError(f'{args.checkpoint}: does not contain both networks (found: '
                        f"{', '.join(held) or 'one without a role'}); leave --weights out, or take "
                        'the latest.pth of a run with a teacher')
    return {role: choose_weights(content, args.checkpoint, names, role)[0] for role in held}


def evaluate_list(args, cfg, models, predict_indices, samples, world):
    """Evaluate on an id list, and print and write the scores; returns the exit status."""
    from dssn.data.workers import explained_failures
    from dssn.inference.evaluation import evaluate, few_classes_lines, table
    from dssn.inference.pictures import PictureWriter
    from dssn.run.metrics import ABSENT_TEXT
    absent = args.absent or 'skip'
    writer = PictureWriter(args.save_dir, cfg, samples) if args.save_dir else None
    started = time.time()
    with explained_failures():
        result = evaluate(models, cfg, samples, world, writer, absent, predict_indices)
    seconds = time.time() - started
    names = names_of_classes(cfg)
    setting = (f"{args.checkpoint} ({', '.join(models)}) on {cfg.val_id_path}: {len(samples)} "
               f'images, {protocol_text(args, cfg)}, absent classes: {absent}')
    if writer:
        (role, found), = result.items()
        scores = (f'mIoU {found.miou:.2f}, pixel accuracy {found.pixel_accuracy:.2f}; classes in '
                  f'neither ground truth nor prediction: {found.absent}, {ABSENT_TEXT[absent]}')
        writer.finish(world, f'{cfg.dataset}: {role}, mIoU {found.miou:.2f}',
                      [setting, scores, *few_classes_lines(result)], found)
    if world.is_main:
        print(setting)
        print(table(result, names, details=True))
        if writer:
            print(f"pictures: {os.path.join(args.save_dir, 'index.html')}")
        if args.json:
            write_json(args, cfg, names, absent, result, seconds)
    return 0


def protocol_text(args, cfg):
    """'sliding_window 801, scales 0.75 1.0, flipped, bf16'."""
    text = cfg.protocol if cfg.protocol == 'original' else f'{cfg.protocol} {cfg.crop_size}'
    if args.scales != [1.0]:
        text += ', scales ' + ' '.join(map(str, args.scales))
    text += ', flipped' * args.flip
    return text if cfg.eval_amp == 'off' else f'{text}, {cfg.eval_amp}'


def predict(args, cfg, models, predict_indices, root, samples, notes, world):
    """Predict the images of --images; returns the exit status, 1 if an image cannot be read.

    Args:
        root, samples: from `find_images`. notes: lines on skipped files, and warnings.
    """
    from dssn.inference.annotations import AnnotationWriter
    from dssn.inference.evaluation import images_at_once
    from dssn.inference.pictures import gather
    from dssn.inference.predict import predict_folder
    from dssn.inference.results import PredictionWriter
    from dssn.precision import half_in_evaluation
    (role, model), = models.items()
    annotations = args.export and AnnotationWriter(args.save_dir, root, samples, cfg,
                                                   export_options(args))
    writer = PredictionWriter(args.save_dir, cfg, samples, root, world,
                              prediction_setting(args, cfg, model, role),
                              args.confidence, args.probabilities, annotations)
    model = half_in_evaluation(model, cfg, world.device)
    problems = predict_folder(model, root, samples, world, writer, predict_indices, tiling(args),
                              images_at_once(cfg, world.device), writer.waiting, writer.canvas)
    facts = [f'{args.checkpoint} ({role}), {protocol_text(args, cfg)}'] + notes
    place = args.images[0] if len(args.images) == 1 else f'{len(samples)} images in {root}'
    title = f'{cfg.dataset}: {role} on {place}'
    problems = writer.finish(world, title, facts, None, problems)
    unlocated = len(gather(writer.unlocated, world))
    predicted = sorted(gather([row['position'] for row in writer.rows], world))
    if not world.is_main:
        return 0  # with another status the launcher would end rank 0, which may still be writing
    if unlocated:
        notes.append(f'geo-referenced images: {unlocated}; rasterio writes their '
                     'predictions with coordinates: pip install rasterio')
    for line in notes + problems:
        print(f'eval.py: {line}', file=sys.stderr)
    earlier = len(samples) - len(writer.waiting)
    print(f'{len(samples) - len(problems)} of {len(samples)} images predicted'
          + f', {earlier} of them in an earlier call' * bool(earlier)
          + f"; pictures: {os.path.join(args.save_dir, 'index.html')}")
    if annotations:
        kept = sum(map(annotations.is_kept, predicted))
        print(f'for {args.export}: {annotations.finish(predicted)}'
              + f'; {kept} files that were changed by hand are kept' * bool(kept))
    return 1 if problems else 0


def prediction_setting(args, cfg, model, role):
    """All that a prediction depends on beside its image, {name: value}, for the record."""
    return {
        'network': checksum(network_weights(model)), 'weights': role, 'protocol': cfg.protocol,
        'crop_size': cfg.crop_size, 'eval_amp': cfg.eval_amp, '--scales': args.scales,
        '--flip': args.flip, **{f'--{name}': value for name, value in
                                tiling(args)._asdict().items()},
        '--confidence': args.confidence, '--probabilities': args.probabilities,
        'classes': names_of_classes(cfg), 'colours': [*map(list, colours_of_classes(cfg))],
    }


def write_json(args, cfg, names, absent, result, seconds):
    """Write the scores to --json; `names` are those of the classes."""
    content = {
        'checkpoint': args.checkpoint, 'id_path': cfg.val_id_path, 'protocol': cfg.protocol,
        'crop_size': cfg.crop_size, 'scales': args.scales, 'flip': args.flip, 'absent': absent,
        'eval_amp': cfg.eval_amp, 'seconds': round(seconds, 2), 'scores': {},
    }
    for role, found in result.items():
        known = found._asdict()
        per_class = {key: known.pop(key) for key in ('iou', 'recall', 'precision')}
        known['classes'] = [dict(zip(['name', *per_class], values))
                            for values in zip(names, *per_class.values())]
        content['scores'][role] = known
    try:
        with open(args.json, 'w', encoding='utf-8') as file:
            json.dump(content, file, indent=1)
    except OSError as error:
        raise UserError(f'--json {args.json}: cannot be written ({error.strerror}); name a file in '
                        'an existing folder') from None


if __name__ == '__main__':
    try:
        status = main()
        from dssn import distributed
        distributed.exit(status)
    except UserError as error:
        sys.exit(f'eval.py: error: {error}')
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(status_without_reader())
