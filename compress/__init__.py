"""From a trained network to what a board runs, each step proven.  Needs the extra ``m2jlnet[compress]``."""
