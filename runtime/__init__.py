"""What runs beside the patient: signal chain, windows, back ends, alerts and sinks.

Needs the base install only (numpy, scipy, onnxruntime, pyserial, pydantic, typer, rich); nothing here imports
torch, onnx, wfdb or matplotlib.  Decision support for research and development, not a medical device.
"""
