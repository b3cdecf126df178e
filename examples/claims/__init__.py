"""The theory of contrastive learning as sixteen experiments: python examples/claims. Results: docs/claims.md

Each claim is one module, to be read from top to bottom: the statement, the measurement, the verdict, the table and the
picture. laboratory.py has the contract of such a module, the seeds and the records, training.py the training loop.
"""

NAMES = ("infonce_bound", "tightness", "counting", "alignment_uniformity",           # 1 to 4
         "collapse", "batch_size", "temperature", "head",                            # 5 to 8
         "head_discards", "colour", "shortcuts", "momentum",                         # 9 to 12
         "queue_size", "leak", "zero_shot", "prediction")                            # 13 to 16
