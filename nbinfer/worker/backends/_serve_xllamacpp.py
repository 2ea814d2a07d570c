"""llama.cpp's own HTTP server, through xllamacpp.

It answers any web page that a browser shows (CORS ``*``) unless it is told not to: pages of this
machine alone may read its answers, and it always has a key.
"""

from __future__ import annotations

import threading

from nbinfer.worker.backends._llamacpp_params import common_params, xllamacpp
from nbinfer.worker.backends._logtail import last_error


def serve(message, stage):
    model, where = message["model"], message["where"]
    params = common_params(model)
    params.hostnames = [where["host"]]
    params.port = where["port"]
    params.api_keys = [where["key"]] if where["key"] else []
    params.model_alias = {where["name"]}
    params.cors_origins = f"http://{where['host']}:{where['port']}"
    params.endpoint_metrics = True
    stage("loading the model")
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        raise RuntimeError(last_error() or str(error)) from None
    threading.Event().wait()  # the library's threads serve; SIGTERM ends the process
    del server
