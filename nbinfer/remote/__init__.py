"""Engines that are servers: one client, its patience, and what each server is asked.

``loop`` is the thread that all of it runs on, ``service`` the servers behind one engine, on the
connections of ``lanes``; ``exchange`` is one request and its answer, ``failures`` what is tried
again, ``pace`` how much is under way at once, ``openai`` the requests and streams of the API that
most servers speak, ``discovery`` what a server says of itself, ``run`` a run on it, ``batch`` one
by a cloud's batch API. A server with words of its own has them in its engine's file.
"""
