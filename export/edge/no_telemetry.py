"""Turn off onnxruntime's telemetry, unless the environment says otherwise; this must happen before onnxruntime is imported.

The Linux wheel of 1.32 starts a client that reports to its vendor and leaves a file `.ses` in the folder for temporary files.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
