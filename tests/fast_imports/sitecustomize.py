"""Python runs this in the programs that tests start, so that they import PyTorch faster.

`torch._dynamo`, which compiles networks, takes almost as long to import as PyTorch itself. PyTorch
imports it when the first optimizer or DistributedDataParallel is made, although it compiles
nothing. Here a stand-in answers for it. If a program uses anything else of it, it is imported.
"""
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types

DYNAMO = 'torch._dynamo'
# What PyTorch uses where nothing is compiled: optimizers two functions, a new group of processes
# one of `trace_rules`, and DistributedDataParallel one of `utils`.
ANSWERS = {
    DYNAMO: {'disable': lambda fn=None, recursive=True, **_: fn or (lambda fn: fn),
             'graph_break': lambda *_, **__: None},
    DYNAMO + '.trace_rules': {'clear_lru_cache': lambda: None},
    DYNAMO + '.utils': {'get_optimize_ddp_mode': lambda: 'ddp_optimizer'}}


class StandIn(types.ModuleType):
    __path__ = ()

    def __init__(self, name):
        super().__init__(name)
        self.__dict__.update(ANSWERS[name])

    def __getattr__(self, name):
        if name.startswith('__'):  # Python looks at these while it imports
            raise AttributeError(name)
        if self.__name__ != DYNAMO:
            return getattr(real(self.__name__), name)
        inner = f'{DYNAMO}.{name}'
        stands_in = inner in ANSWERS and sys.modules.get(DYNAMO) is self
        return StandIn(inner) if stands_in else getattr(real(DYNAMO), name)


def real(name):
    """The module of this name itself; the stand-in is gone."""
    if isinstance(sys.modules.get(DYNAMO), StandIn):
        sys.meta_path.remove(finder)
        del sys.modules[DYNAMO]
        sys.modules['torch']._dynamo = importlib.import_module(DYNAMO)
    return importlib.import_module(name)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name == DYNAMO:
            return importlib.machinery.ModuleSpec(name, self)
        if name.startswith(DYNAMO + '.'):
            real(DYNAMO)
            return importlib.util.find_spec(name)
        return None

    def create_module(self, spec):
        return StandIn(spec.name)

    def exec_module(self, module):
        pass


finder = Finder()
sys.meta_path.insert(0, finder)
