"""CuPy's dialect of NumPy, spoken strictly on a machine without a GPU.

    strict.install()             the stand-in, put where `import cupy` and minicl find it
    strict.cupy_or_stand_in()    the same, except that on a GPU it is CuPy itself
    strict.synchronisations()    how often the host has waited for the device so far
    strict.launches()            how many kernels, products and copies it has handed to the device

strict.py holds the module, device_array.py its array, stream.py the counts, fusion.py cupy.fuse, elementwise.py minicl's CUDA kernels in NumPy, cupy_listing.json
CuPy's public names and parameters as make_listing.py found them.
"""
