"""The command line: ``python -m minisam photo.jpg --point 500,375``, also installed as ``minisam``.

`arguments` says what can be asked and imports nothing heavy, so that ``--help`` is instant.
`single` answers for one photo and one prompt, `many` for every object and for many photos, with
`minisam.batch` behind it; the other files are their parts, and `streams` is for every program that
prints.
"""
