"""Train, diagnose and show vision-language embedders for multimodal sequential recommendation."""

from importlib import import_module

__version__ = "0.1.0"

_OFFERED = {
    'collapse_report': 'diagnose',
    'train': 'train',
    'evaluate': 'metrics',
    'VLMEmbedder': 'embed',
    'load_folder': 'data',
}
__all__ = list(_OFFERED)


def __getattr__(name):
    "The main things, found when they are asked for, so that importing the package costs nothing."
    if name in _OFFERED:
        return getattr(import_module(f'{__name__}.{_OFFERED[name]}'), name)
    if name.startswith('__'):
        raise AttributeError(name)
    from .base.errors import no_such

    raise AttributeError(no_such(name, __all__, 'such thing as'))


def __dir__():
    return [*globals(), *__all__]
