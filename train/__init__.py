"""Data sets, M2JLNet, its losses, training and evaluation.  Needs the extra ``m2jlnet[train]``."""
