"""The model zoo: metafiles, the only source, and the pages and figure made from them."""

from .metafiles import Collection, Model, read_collections

__all__ = ['Collection', 'Model', 'read_collections']
