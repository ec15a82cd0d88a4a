"""Turn published raw files into RecBole atomic files, by the LEA paper's recipe (section 4.2).

Run it with ``python -m dataset_prep {lfm,amazon,sequences} --help``. The package needs only numpy
and tqdm and imports nothing of RecBole, so data can be prepared on a machine that does not train.
"""
