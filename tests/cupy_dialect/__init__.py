"""CuPy's dialect of NumPy, spoken strictly on a machine without a GPU.

    strict.install()             the stand-in, put where `import cupy` and minicl find it
    strict.cupy_or_stand_in()    the same, except that on a GPU it is CuPy itself
    strict.synchronisations()    how often the host has waited for the device so far

strict.py holds the module, device_array.py its array, cupy_listing.json CuPy's public names and parameters
as make_listing.py found them.
"""
