"""The engine's side of nbinfer: what runs in a process of its own.

Everything in this package but ``host.py`` and ``pipes.py`` runs in a bare Python
that has only the engine's library: it imports the standard library, its own modules
and, in ``backends/``, one engine. A test holds it to that.
"""
