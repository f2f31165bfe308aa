"""
Start-up hook of sb3-energy: makes its algorithms known to the RL Zoo once, and only if, ``rl_zoo3`` is imported.

torch calls :func:`install` at the end of ``import torch`` (entry point group ``torch.backends``). This module is
standard library only: it imports neither torch nor sb3_energy nor rl_zoo3. ``SB3_ENERGY_AUTOLOAD=0`` (or ``false``, ``no``,
``off``, or nothing) switches it off.
"""

import os
import sys

WATCHED = ("rl_zoo3.utils", "rl_zoo3.hyperparams_opt", "rl_zoo3.exp_manager", "rl_zoo3.callbacks")
SWITCH = "SB3_ENERGY_AUTOLOAD"
OFF = ("0", "false", "no", "off", "")


def _patch(module):
    """Register in one freshly executed module of the zoo; a broken sb3-energy must not break the zoo."""
    try:
        from sb3_energy.zoo.plugin import patch

        patch(module)
    except Exception as error:
        _warn(f"sb3-energy could not register itself in {module.__name__}: {error!r}")


def _warn(message):
    """A warning, or a line where warnings are errors: raised from here it would break the import of the zoo."""
    import warnings

    try:
        warnings.warn(message, stacklevel=3)
    except Warning:
        print(message, file=sys.stderr)


def _is_off():
    return os.environ.get(SWITCH, "1").strip().lower() in OFF


class _PatchingLoader:
    """Delegates to the real loader and patches the module once its body has run."""

    def __init__(self, loader):
        self._loader = loader

    def __getattr__(self, name):
        # copy and pickle ask for attributes before __init__ has run
        if name == "_loader":
            raise AttributeError(name)
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        # leave no trace: inspect, pickle and reload see the real loader
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _patch(module)


class _Finder:
    """Meta path finder that says nothing unless one of the watched modules is asked for."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in WATCHED:
            return None
        for finder in sys.meta_path:
            find_spec = getattr(finder, "find_spec", None)
            spec = find_spec(name, path, target) if finder is not _Finder and find_spec else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _PatchingLoader(spec.loader)
                return spec
        return None


def _patch_when_bound(parent_name, child):
    """
    Patch a module that is being executed right now: rl_zoo3 imports torch from inside ``rl_zoo3/utils.py``, so the
    hook runs while that module is half done and a finder comes too late. The import system binds a finished
    submodule on its parent with ``setattr``: a temporary class of the parent catches that.
    """
    package = sys.modules[parent_name]
    original = package.__class__

    class Watched(original):
        def __setattr__(self, key, value):
            super().__setattr__(key, value)
            if key == child:
                self.__class__ = original
                _patch(value)

    package.__class__ = Watched


def install(force=False):
    """
    Watch for the modules of the RL Zoo, and patch those that are imported already. Never raises.

    :param force: install even where the environment variable ``SB3_ENERGY_AUTOLOAD`` switches it off
    """
    try:
        if _Finder in sys.meta_path or (_is_off() and not force):
            return
        sys.meta_path.insert(0, _Finder)
        for name in WATCHED:
            module = sys.modules.get(name)
            if module is None:
                continue
            if getattr(module.__spec__, "_initializing", False):
                _patch_when_bound(*name.rpartition(".")[::2])
            else:
                _patch(module)
    except Exception as error:  # an exception here would break `import torch`
        print(f"sb3-energy: the start-up hook failed and is off: {error!r}", file=sys.stderr)
