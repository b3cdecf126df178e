"""The theory, claim by claim, as experiments that run: python examples/claims. Figures and verdicts: docs/claims.md

Each claim is one module, read from top to bottom: what it says, how it is measured, judged and drawn. What they share
is laboratory.py (seeds, verdicts, records) and training.py (the small training loop).
"""

NAMES = ("infonce_bound", "tightness", "counting", "alignment_uniformity",           # 1 to 4
         "collapse", "batch_size", "temperature", "head",                            # 5 to 8
         "head_discards", "colour", "shortcuts", "momentum",                         # 9 to 12
         "queue_size", "leak", "zero_shot", "prediction")                            # 13 to 16
