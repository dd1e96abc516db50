"""Public weights of the backbones, in the folder pretrained/."""

COMMANDS = {
    'fetch': ('dssn.tools.weights.fetch', 'download public weights for a backbone'),
    'convert': ('dssn.tools.weights.convert', 'copy the weights from a file that you have'),
    'check': ('dssn.tools.weights.check', 'report what a file contains, and what is missing'),
}
