"""From a trained network to what a board runs, each step proven.  Needs the extra ``m2jlnet[compress]``."""

import runtime  # noqa: F401 - sets what must be set before onnxruntime is imported
