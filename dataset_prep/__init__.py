"""Turn published raw files into RecBole atomic files, by the LEA paper's recipe (section 4.2).

Run it with ``python -m dataset_prep {lfm,amazon,sequences,table} --help``. The package needs only
numpy, pandas and tqdm, and nothing of RecBole: data can be prepared where nothing is trained.
"""
