"""A strict stand-in for CuPy, for a machine without a GPU.

    strict.install()             the stand-in, found from then on by `import cupy` and minicl
    strict.cupy_or_stand_in()    the same, except that on a GPU it is CuPy itself
    strict.synchronisations()    how often the host has waited for the device so far
    strict.launches()            how many kernels, products and copies it has handed to the device

strict.py holds the module, device_array.py its array, stream.py the counts, fusion.py cupy.fuse, elementwise.py
minicl's CUDA kernels in NumPy, and cupy_listing.json CuPy's public names and parameters, written by make_listing.py.
"""
