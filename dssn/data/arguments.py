"""Types of command line arguments, for argparse: what is wrong is said with the usage, status 2."""
import argparse
from fractions import Fraction


def whole_number(text):
    """A whole number, at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f'{text} must be at least 0')
    return value


def positive_number(text):
    """A whole number, at least 1."""
    if whole_number(text) == 0:
        raise argparse.ArgumentTypeError(f'{text} must be at least 1')
    return int(text)


def count_or_share(text):
    """'40' -> 40 samples; '1/8' or '0.2' -> that share, as a Fraction above 0 and up to 1."""
    try:
        value = Fraction(text) if '/' in text or '.' in text else int(text)
    except (ValueError, ZeroDivisionError):
        value = 0
    if value <= 0 or (isinstance(value, Fraction) and value > 1):
        raise argparse.ArgumentTypeError(f"'{text}' must be a number of samples such as 40, or a share "
                                         'such as 1/8 or 0.2')
    return value
