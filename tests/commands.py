"""Command lines `python -m dssn GROUP ...` as functions of the arguments after the group."""
from dssn.__main__ import main


def bench(argv):
    return main(['bench', *argv])


def experiments(argv):
    return main(['experiments', *argv])


def report(argv):
    return main(['report', *argv])


def weights(argv):
    return main(['weights', *argv])
