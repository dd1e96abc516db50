"""Class names and colours of the known data sets."""
import colorsys

CLASSES = {
    'shapes': 'background disk square triangle star ring cross'.split(),
    'pascal': ('background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable '
               'dog horse motorbike person pottedplant sheep sofa train tvmonitor').split(),
    'cityscapes': ['road', 'sidewalk', 'building', 'wall', 'fence', 'pole', 'traffic light',
                   'traffic sign', 'vegetation', 'terrain', 'sky', 'person', 'rider', 'car',
                   'truck', 'bus', 'train', 'motorcycle', 'bicycle'],
    'camvid': ('sky building pole road pavement tree sign fence car pedestrian '
               'bicyclist').split(),
    'idd_lite': ['drivable', 'non-drivable', 'living things', 'vehicles', 'roadside objects',
                 'far objects', 'sky'],
    'coco': ['background'] + [name.strip() for name in (
        'person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, '
        'fire hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, '
        'elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, '
        'skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, '
        'tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, '
        'sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, '
        'potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, '
        'cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, '
        'teddy bear, hair drier, toothbrush').split(',')],
    'ade20k': [name.strip() for name in (
        'wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, '
        'sidewalk, person, earth, door, table, mountain, plant, curtain, chair, car, water, '
        'painting, sofa, shelf, house, sea, mirror, rug, field, armchair, seat, fence, desk, rock, '
        'wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, '
        'chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, '
        'path, stairs, runway, case, pool table, pillow, screen door, stairway, river, bridge, '
        'bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop, stove, '
        'palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, '
        'towel, light, truck, tower, chandelier, awning, streetlight, booth, television, airplane, '
        'dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster, '
        'stage, van, ship, fountain, conveyer belt, canopy, washer, plaything, swimming pool, '
        'stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, '
        'tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, '
        'sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, '
        'monitor, bulletin board, shower, radiator, glass, clock, flag').split(',')],
}
PALETTES = {
    'cityscapes': [(128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153),
                   (153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152),
                   (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70),
                   (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32)],
    'camvid': [(128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222),
               (128, 128, 0), (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0),
               (0, 128, 192)],
    # Our choice: drivable gray, non-drivable ochre, living things red, vehicles blue, roadside
    # objects yellow, far objects green, sky light blue.
    'idd_lite': [(90, 90, 90), (190, 140, 60), (230, 30, 50), (40, 60, 190), (240, 220, 60),
                 (60, 130, 60), (140, 205, 250)],
}
IGNORE_COLOUR = (255, 255, 255)


def names_of_classes(cfg):
    """The class names of a config, in index order: its own, or its data set's."""
    return list(cfg.classes) or default_names(cfg.dataset, cfg.nclass)


def colours_of_classes(cfg):
    """The class colours (R, G, B) of a config, in index order: its own, or its data set's."""
    return [tuple(colour) for colour in cfg.colours] or default_colours(cfg.dataset, cfg.nclass)


def default_names(dataset, nclass):
    """The class names of a known data set. For any other: 'class 0', 'class 1', ..."""
    names = CLASSES.get(dataset, [])
    if len(names) == nclass:
        return list(names)
    return [f'class {i}' for i in range(nclass)]


def default_colours(dataset, nclass):
    """nclass RGB colours: those of the data set, of VOC's colour map, or evenly spread hues."""
    if len(PALETTES.get(dataset, [])) == nclass:
        return list(PALETTES[dataset])
    if dataset in ('pascal', 'coco', 'ade20k') and nclass <= 255:
        return [voc_colour(i) for i in range(nclass)]
    # Golden-ratio steps give neighbouring classes different hues, whatever the count. Eight steps
    # almost return to the first hue, so the second, fourth, ... group of eight is paler. The first
    # class is dark.
    hues = [(i * 0.61803) % 1 for i in range(nclass)]
    bright = [colorsys.hsv_to_rgb(h, 0.4 if i // 8 % 2 else 0.75, 0.6 + 0.35 * (i % 2))
              for i, h in enumerate(hues)]
    return [(40, 40, 40)] + [tuple(int(255 * c) for c in rgb) for rgb in bright[1:]]


def voc_colour(index):
    """Colour of a class in Pascal VOC's map.

    The bits of the index go to R, G and B in turn, and fill each of them from its highest bit.
    """
    rgb = [0, 0, 0]
    for bit in range(8):
        rgb[bit % 3] |= ((index >> bit) & 1) << (7 - bit // 3)
    return tuple(rgb)
