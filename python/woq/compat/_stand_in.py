# SPDX-License-Identifier: Apache-2.0
"""Modules under the names of a library that is not installed.

Nothing is written to disk: the modules exist in this process, while they are installed. Their names
are loaded on first use, for some need torch.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from ..core.extras import needed_by
from ..core.native import Unsupported

__all__ = ["StandIn"]

logger = logging.getLogger("woq")


@dataclasses.dataclass(frozen=True)
class StandIn:
    """What stands in for a library.

    Args:
        package: what code imports.
        distribution: what pip calls it.
        owner: the module of woq that stands in.
        version: that of the interface; its local part tells it from the real one.
        covers: a few words, for those who look for more than there is.
        names: for each module, by what follows `package` in its name, its names and the modules
            that they come from.
        absent: names of the library that are not there, and what to say of them.
    """

    package: str
    distribution: str
    owner: str
    version: str
    covers: str
    names: Mapping[str, Mapping[str, str]]
    absent: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def put(self) -> None:
        """Add the modules.

        Raises:
            Unsupported: the real library is installed.
        """
        if self.is_in_place():
            return
        self._refuse_real_package()
        for suffix, names in self.names.items():
            self._add_module(suffix, names)
        sys.meta_path.append(_OtherModules(self))
        logger.info("%s is %s in this process", self.package, self.owner)

    def put_back(self) -> None:
        """Take the modules away. Names that were imported meanwhile go on working."""
        if not self.is_in_place():
            return
        for suffix in self.names:
            sys.modules.pop(self.package + suffix, None)
        sys.meta_path[:] = [
            finder
            for finder in sys.meta_path
            if not (isinstance(finder, _OtherModules) and finder.of is self)
        ]

    def is_in_place(self) -> bool:
        spec = getattr(sys.modules.get(self.package), "__spec__", None)
        return spec is not None and spec.origin == self.owner

    def _refuse_real_package(self) -> None:
        if self.package not in sys.modules and importlib.util.find_spec(self.package) is None:
            return
        raise Unsupported(
            f"{self.package} is installed in this environment, and woq does not stand in for it: "
            f"leave out {self.owner}.install(), or uninstall the package "
            f"(pip uninstall {self.distribution})"
        )

    def _add_module(self, suffix: str, names: Mapping[str, str]) -> None:
        name = self.package + suffix
        module = ModuleType(name, f"Part of an interface, from {self.owner}.")
        module.__spec__ = ModuleSpec(name, None, origin=self.owner, is_package=True)
        module.__path__ = []  # a package, with no files to look for modules in
        module.__dict__["__all__"] = sorted(names)
        module.__dict__["__getattr__"] = self._finder(module, names)
        module.__dict__["__version__"] = self.version
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)

    def _finder(self, module: ModuleType, names: Mapping[str, str]) -> Callable[[str], Any]:
        def find(name: str) -> Any:
            if name in names:
                with needed_by(f"{name} of {self.owner}"):
                    value = getattr(importlib.import_module(names[name]), name)
                setattr(module, name, value)
                return value
            if name in self.absent:
                raise ImportError(f"{self.owner} has no {name}: {self.absent[name]}")
            raise AttributeError(f"module {module.__name__!r} ({self.owner}) has no {name!r}")

        return find


class _OtherModules(MetaPathFinder):
    """Says of the library's other modules why they are not there; asked after all other finders."""

    def __init__(self, of: StandIn) -> None:
        self.of = of

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        of = self.of
        if fullname.startswith(of.package + "."):
            known = ", ".join(of.package + suffix for suffix, names in of.names.items() if names)
            raise ModuleNotFoundError(
                f"{of.owner} has no {fullname}: it covers {of.covers}, in {known}", name=fullname
            )
        return None
