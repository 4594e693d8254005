"""The nano weights that ship with minisam, and how they were trained (``weights/train``)."""
