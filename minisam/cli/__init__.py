"""The command line: ``python -m minisam photo.jpg --point 500,375``, also installed as ``minisam``.

`arguments` says what can be asked and imports nothing heavy, so that ``--help`` is instant.
`single` answers for one photo and one prompt; the other files are its parts, except `streams`, for
every program that prints. Everything else (every object, many photos) is `minisam.batch`.
"""
