"""All that touches RecBole.

RecBole is imported first: ``recbole_lea`` registers the modules of this package by then.
"""

import importlib

from recbole_lea.keys import recbole_folder

recbole_folder()  # names the remedy where it is not installed
importlib.import_module("recbole")
