"""Puts the bundle's packages at the end of sys.path: what the machine has itself always comes first.

Python runs this file at its start because the bundle's `activate` names its folder in PYTHONPATH. A Python of
another version finds no packages here; a sitecustomize of the machine is run as before.
"""

import importlib.machinery
import importlib.util
import os
import site
import sys

_here = os.path.dirname(os.path.abspath(__file__))
_packages = os.path.join(
    os.path.dirname(_here), "lib", "python{}.{}".format(*sys.version_info[:2]), "site-packages"
)
if os.path.isdir(_packages):
    site.addsitedir(_packages)

_others = [folder for folder in sys.path if os.path.abspath(folder) != _here]
_spec = importlib.machinery.PathFinder.find_spec("sitecustomize", _others)
if _spec is not None and _spec.loader is not None:
    _spec.loader.exec_module(importlib.util.module_from_spec(_spec))
