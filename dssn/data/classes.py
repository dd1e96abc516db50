"""Names and colours of the known data sets' classes."""
import colorsys

CLASSES = {
    'shapes': 'background disk square triangle star ring cross'.split(),
    'pascal': ('background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog '
               'horse motorbike person pottedplant sheep sofa train tvmonitor').split(),
    'cityscapes': ['road', 'sidewalk', 'building', 'wall', 'fence', 'pole', 'traffic light',
                   'traffic sign', 'vegetation', 'terrain', 'sky', 'person', 'rider', 'car',
                   'truck', 'bus', 'train', 'motorcycle', 'bicycle'],
    'camvid': ('sky building pole road pavement tree sign fence car pedestrian '
               'bicyclist').split(),
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
}
PALETTES = {
    'cityscapes': [(128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153),
                   (153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152),
                   (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70),
                   (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32)],
    'camvid': [(128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222),
               (128, 128, 0), (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0),
               (0, 128, 192)],
}
IGNORE_COLOUR = (255, 255, 255)


def class_names(dataset, nclass):
    """The names of a known data set, or 'class 0', 'class 1', ... for any other."""
    names = CLASSES.get(dataset, [])
    if len(names) == nclass:
        return list(names)
    return [f'class {i}' for i in range(nclass)]


def palette(dataset, nclass):
    """nclass RGB colours: the data set's own, VOC's colour map, or evenly spread hues."""
    if len(PALETTES.get(dataset, [])) == nclass:
        return list(PALETTES[dataset])
    if dataset in ('pascal', 'coco') and nclass <= 255:
        return [voc_colour(i) for i in range(nclass)]
    # Golden-ratio steps keep neighbours apart for any count; the first class is dark. Eight steps
    # nearly come round: every other eight are paler.
    hues = [(i * 0.61803) % 1 for i in range(nclass)]
    bright = [colorsys.hsv_to_rgb(h, 0.4 if i // 8 % 2 else 0.75, 0.6 + 0.35 * (i % 2))
              for i, h in enumerate(hues)]
    return [(40, 40, 40)] + [tuple(int(255 * c) for c in rgb) for rgb in bright[1:]]


def voc_colour(index):
    """Colour of a class in Pascal VOC's map: the index's bits dealt to R, G, B from the top."""
    rgb = [0, 0, 0]
    for bit in range(8):
        rgb[bit % 3] |= ((index >> bit) & 1) << (7 - bit // 3)
    return tuple(rgb)
