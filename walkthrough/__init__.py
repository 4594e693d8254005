"""The walkthrough's tools; run from a checkout, not part of the installed package.

``python -m walkthrough.sync`` checks the chapters (``--write`` refreshes them), and
``python -m walkthrough.figures`` draws their figures.
"""
