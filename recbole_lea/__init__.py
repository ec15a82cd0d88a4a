"""recbole_lea: a large language model as user environment for RL recommenders in RecBole.

Importing this package registers its models, so that
``run_recbole(model='SASRecSA2CLEA', dataset='ml-100k')`` works. ``recbole_lea.le`` is the LE
alone; it needs no RecBole.
"""

import importlib.util

__version__ = "0.1.0"

if importlib.util.find_spec("recbole") is not None:
    from recbole_lea.compat import register

    register()
    del register
