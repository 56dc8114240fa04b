"""SAEs in other tools' formats, read and written.

In: a folder of SAELens or sparsify, or one of our SAEs. Out: the other one, with the same codes.
This package does not train or measure.
"""
