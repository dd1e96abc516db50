"""Types of command line arguments, and texts of --help, for argparse."""
import argparse
from fractions import Fraction


def number(text, kind):
    """kind(text), such as int('40'). Python reads `1_8` as 18, which may be meant as 1/8."""
    if '_' in text:
        raise ValueError(text)
    return kind(text)


def whole_number(text):
    """A whole number, at least 0."""
    value = number(text, int)
    if value < 0:
        raise argparse.ArgumentTypeError(f'{text} must be at least 0')
    return value


def positive_number(text):
    """A whole number, at least 1."""
    if whole_number(text) == 0:
        raise argparse.ArgumentTypeError(f'{text} must be at least 1')
    return int(text)


def positive_amount(text):
    """A finite number above 0, such as 6 or 0.5."""
    try:
        value = number(text, float)
    except ValueError:
        value = 0.0
    if not 0 < value < float('inf'):
        raise argparse.ArgumentTypeError(f"'{text}' must be a number above 0, such as 6 or 0.5")
    return value


def between(low, high):
    """The type of a number from `low` to `high`, such as 0.5."""
    def convert(text):
        try:
            value = number(text, float)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"'{text}' must be a number from {low} to {high}")
        return value
    return convert


def count_or_fraction(text):
    """'40' -> 40, a number of samples; '1/8' or '0.2' -> a Fraction above 0 and at most 1."""
    try:
        value = number(text, Fraction if '/' in text or '.' in text else int)
    except (ValueError, ZeroDivisionError):
        value = 0
    if value <= 0 or (isinstance(value, Fraction) and value > 1):
        raise argparse.ArgumentTypeError(f"'{text}' must be a number of samples such as 40, or a "
                                         'fraction such as 1/8 or 0.2')
    return value


def help_text(function):
    """The docstring of a function without its indentation, for --help."""
    return '\n'.join(line[4:] if line.startswith('    ') else line
                     for line in function.__doc__.rstrip().split('\n'))
