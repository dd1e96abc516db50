"""Python runs this in the programs that tests start: they import torch._dynamo only if they use it.

PyTorch imports it when the first optimizer is made, which takes as long as the import of PyTorch
itself. There it only keeps torch.compile out of functions of optimizers.
"""
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types

NAME = 'torch._dynamo'


class Stub(types.ModuleType):
    """Stands in for the module until something else than these two functions is used."""
    __path__ = ()

    @staticmethod
    def disable(fn=None, recursive=True, **_):
        return fn or (lambda fn: fn)

    @staticmethod
    def graph_break(*_, **__):
        pass

    def __getattr__(self, name):
        if name.startswith('__'):  # Python looks at these while it imports
            raise AttributeError(name)
        return getattr(real(), name)


def real():
    """The module itself, in place of the stub."""
    if isinstance(sys.modules.get(NAME), Stub):
        sys.meta_path.remove(finder)
        del sys.modules[NAME]
        sys.modules['torch']._dynamo = importlib.import_module(NAME)
    return sys.modules[NAME]


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name == NAME:
            return importlib.machinery.ModuleSpec(name, self)
        if name.startswith(NAME + '.'):
            real()
            return importlib.util.find_spec(name)
        return None

    def create_module(self, spec):
        return Stub(spec.name)

    def exec_module(self, module):
        pass


finder = Finder()
sys.meta_path.insert(0, finder)
