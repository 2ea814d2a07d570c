"""The public engine classes, one file each; ``registry`` knows them by name.

The package can be called: ``nbinfer.engines()`` is the table of what is resident. Python
puts a subpackage over a function of the same name as soon as it is imported.
"""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


class _Package(types.ModuleType):
    def __call__(self) -> pd.DataFrame:
        from ..overview import engines

        return engines()


sys.modules[__name__].__class__ = _Package
