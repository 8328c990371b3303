"""What runs beside the patient: signal chain, windows, back ends, alerts and sinks.

Needs the base install only (numpy, scipy, onnxruntime, pyserial, pydantic, typer, rich); nothing here imports
torch, onnx, wfdb or matplotlib.  Decision support for research and development, not a medical device.
"""

import os

# ONNX Runtime's wheels from 1.28 or so on keep a device id and send usage data home unless told not to before they are
# imported.  Beside a patient that is not for a library to decide; whoever wants it sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
