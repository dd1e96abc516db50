from dssn.errors import UserError as UserError
from dssn.inference.network import Network as Network, load as load

__version__: str
